"""The report on this machine."""

import re
from pathlib import Path

import pytest

import rheo
from rheo.envs import packages
from rheo.scripts import doctor
from rheo.scripts.cli import main
from rheo.scripts.config.compose import HOME
from rheo.scripts.store.provenance import version, versions


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


def test_without_its_engine_the_backend_for_devices_is_a_note_and_is_not_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {"warp": (("no_such_module_anywhere",), "'rheo-rl[warp]'", (3, 0))}
    monkeypatch.setattr(packages, "ENGINES", missing)
    monkeypatch.setattr(packages, "bound_packages", list)
    (finding,) = doctor.worlds_on_a_device()
    assert finding.status == "note" and finding.fix == "pip install 'rheo-rl[warp]'"
    assert finding.what == "env.backend=warp needs a package that is missing"
    monkeypatch.setattr(packages, "ENGINES", {"warp": (("os",), "'rheo-rl[warp]'", (99, 0))})
    (finding,) = doctor.worlds_on_a_device()
    assert "needs Python 99.0" in finding.what and finding.fix.startswith("use a newer Python")


def test_the_engine_s_versions_devices_and_kernels_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mujoco_warp", reason="needs pip install 'rheo-rl[warp]' (Python 3.11)")
    devices, kernels = doctor.worlds_on_a_device()
    assert devices.status == kernels.status == "ok"
    assert f"mujoco-warp {version('mujoco-warp')} and warp-lang {version('warp-lang')}" in (
        devices.what
    )
    assert "worlds can be on cpu" in devices.what
    monkeypatch.setattr(
        doctor.metadata, "requires", lambda _: ["mujoco>=99", "numpy>1", "x; extra == 'y'"]
    )
    (finding,) = doctor.worlds_on_a_device()
    assert finding.fix == packages.pip_install("--upgrade 'rheo-rl[warp]'")
    assert f"mujoco {version('mujoco')} (asked for: >=99)" in finding.what
    assert "numpy" not in finding.what and "x -" not in finding.what
    assert "no kernels yet" in doctor.kept_kernels(tmp_path).what
    (tmp_path / "wp_one").mkdir()
    assert "1 modules of kernels" in doctor.kept_kernels(tmp_path).what
    refused = doctor.kept_kernels(Path("/proc"))
    assert refused.status == "note" and refused.fix.startswith("set WARP_CACHE_PATH")


def test_a_gpu_that_only_torch_sees_wants_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert doctor.seen("warp", ["cpu", "cuda:0"]).status == "ok"
    finding = doctor.seen("warp", ["cpu"])
    assert finding.status == "note" and finding.fix == "update the NVIDIA driver"


def test_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "steps=1"]) == 2
    assert "usage: rheo doctor" in capsys.readouterr().err
