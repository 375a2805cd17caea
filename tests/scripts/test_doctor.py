"""The report on this machine."""

import re

import pytest

import rheo
from rheo.scripts import doctor
from rheo.scripts.cli import main
from rheo.scripts.config.compose import HOME
from rheo.scripts.store.provenance import versions


def test_a_machine_that_passes_these_tests_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main() == 0
    out = capsys.readouterr().out
    assert "torch " in out and '"medium" products' in out and out.endswith("ready\n")
    fixes = [line for line in out.splitlines() if line.startswith("     ->")]
    assert all(len(line) > 15 for line in fixes)


def test_a_check_that_breaks_off_is_a_finding() -> None:
    def check():
        yield doctor.Finding("ok", "first")
        raise OSError("no such thing")

    first, second = doctor.attempt(check)
    assert first.status == "ok"
    assert second.status == "bad" and "no such thing" in second.what


def test_a_folder_that_cannot_be_written_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    (finding,) = doctor.disk()
    assert finding.status == "bad" and finding.fix


def test_packages_are_named_as_the_index_knows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert all("'rheo-rl[" in fix for fix in doctor.OPTIONAL.values())
    project = (HOME.parent / "pyproject.toml").read_text()
    assert re.search(r'^name = "rheo-rl"$', project, re.MULTILINE)
    assert re.search(rf'^version = "{re.escape(rheo.__version__)}"$', project, re.MULTILINE)
    assert versions()["rheo"] == rheo.__version__  # whatever pip knows of it


def test_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "steps=1"]) == 2
    assert "usage: rheo doctor" in capsys.readouterr().err
