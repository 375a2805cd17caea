"""A few hundred damaged and odd recordings; tests/faults/fuzz_data.py makes as many as wanted."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SEED, COUNT = 3, 400


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    """The maker of inputs."""
    path = Path(__file__).parents[2] / "faults" / "fuzz_data.py"
    spec = importlib.util.spec_from_file_location("fuzz_data", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_and_odd_recordings_are_answered(fuzzer: ModuleType) -> None:
    assert fuzzer.fuzz(COUNT, SEED, strict=True) == []


def test_what_a_reader_raises_is_found(fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(fuzzer, "played_in", broken)
    found = fuzzer.fuzz(4, SEED)
    assert len(found) == 4 and all("ZeroDivisionError at" in line for line in found)
    assert found == fuzzer.fuzz(4, SEED)  # the same inputs of the same seed


@pytest.mark.parametrize("counts", [["VmRSS", "VmHWM", "allocated"], ["allocated"]])
def test_what_swells_is_found(
    fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch, counts: list[str]
) -> None:
    held, memory = [], fuzzer.memory
    monkeypatch.setattr(fuzzer, "memory", lambda *_, **a: {x: memory(**a)[x] for x in counts})
    monkeypatch.setattr(fuzzer, "SWOLLEN", 1 << 24)
    monkeypatch.setattr(fuzzer, "SECONDS", 60.0)  # pages are dear where memory is short
    monkeypatch.setattr(fuzzer, "asked", lambda *_: held.append(b"x" * (1 << 29)))
    assert "memory grew by" in fuzzer.fuzz(1, SEED)[0]


def test_what_takes_long_is_found(fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "HANGING", 0.1)
    monkeypatch.setattr(fuzzer, "asked", lambda *_: [None for _ in iter(int, 1)])
    assert fuzzer.fuzz(1, SEED)[0].endswith("computes for more than 0.1 s")
