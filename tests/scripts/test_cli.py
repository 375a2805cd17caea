"""The console command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheo.scripts.cli import VERBS, main

SPY = """
import json, sys
from rheo.scripts.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "hydra", "omegaconf", "numpy", "gymnasium", "mujoco", "rich"}
print(json.dumps([code, sorted(heavy & set(sys.modules))]))
"""


def spy(*words: str, cwd: Path | None = None) -> tuple[int, list[str], str, str]:
    """Exit code, heavy modules imported, stdout and stderr of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", SPY, *words], capture_output=True, text=True, cwd=cwd
    )
    *out, last = done.stdout.splitlines()
    code, heavy = json.loads(last)
    return code, heavy, "\n".join(out), done.stderr


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code, heavy, out, _ = spy("--help")
    assert (code, heavy) == (0, [])
    assert all(f"  {verb}" in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_tells_its_own_usage(verb, capsys) -> None:
    assert main([verb, "--help"]) == 0
    assert f"rheo {verb}" in capsys.readouterr().out.splitlines()[0]


def test_a_wrong_verb_is_answered_with_the_nearest() -> None:
    code, heavy, _, err = spy("trian")
    assert (code, heavy) == (2, [])
    assert "did you mean 'train'?" in err


def test_a_configuration_error_is_one_message_before_torch(tmp_path: Path) -> None:
    code, heavy, _, err = spy("train", "algo=rfm", "env=hopper", "sead=1", cwd=tmp_path)
    assert code == 2 and "torch" not in heavy and "mujoco" not in heavy
    assert err == "rheo: sead: unknown key; did you mean 'seed'?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["eval", "resume"])
def test_a_run_that_is_not_there_is_named_before_torch(verb: str, tmp_path: Path) -> None:
    code, heavy, _, err = spy(verb, "nothing", cwd=tmp_path)
    assert code == 2 and "torch" not in heavy
    assert "no run at runs/nothing" in err and "Traceback" not in err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import rheo

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rheo {rheo.__version__}\n"


def test_an_environments_refusal_is_a_message_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "algo=sac", "env=hopper", "env.options.no_such=1"]) == 2
    assert "no option 'no_such'" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    script = "import sys; from rheo.scripts.cli import main; sys.exit(main(['--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-u", "-c", script], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_verb_that_is_terminated_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """A conversion, in the middle of its writing."""
    monkeypatch.chdir(tmp_path)

    def interrupted(*args: Any, **options: Any) -> None:
        signal.raise_signal(number)

    collected = ["collect", "random", "env=inverted_pendulum", "steps=40", "num_envs=2"]
    assert main([*collected, "out=a.hdf5"]) == 0
    before = signal.getsignal(number)
    monkeypatch.setattr(np.lib.format, "write_array", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["data", "convert", "a.hdf5", "b.npz"])
    assert ended.value.code == code and signal.getsignal(number) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "a.hdf5.card.json"]
