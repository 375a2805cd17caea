"""`rheo completion`: what Tab offers, and how fast."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rheo.scripts import completion
from rheo.scripts.bench import asked as bench_asked
from rheo.scripts.cli import ASKED, VERBS, main
from rheo.scripts.config import playing, verbs
from rheo.scripts.config.branching import BRANCHING
from rheo.scripts.config.exporting import EXPORTING
from rheo.scripts.config.serving import SERVING


def offered(capsys: pytest.CaptureFixture[str], line: str) -> list[str]:
    """The words for a line."""
    assert main(["completion", "words", line]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rheo tr", ["train"]),
        ("rheo comp", ["compare", "completion"]),
        ("rheo train al", ["algo="]),
        ("rheo train algo=rfm_", ["rfm_box", "rfm_offline", "rfm_paper"]),
        ("rheo train algo=rfm env=hop", ["hopper", "hopper_v4"]),
        ("rheo train algo=rfm policy/", ["policy/net="]),
        ("rheo train dry=", ["true"]),
        ("rheo info algo=awm_q", ["awm_q", "awm_q_tune"]),
        ("rheo data ch", ["check"]),
        ("rheo collect br", ["branches"]),
        ("rheo collect branches fi", ["first"]),
        ("rheo collect branches first act=e", ["explored"]),
        ("rheo eval first ep", ["episodes="]),
        ("rheo eval fi", ["first"]),
        ("rheo train init=s", ["second"]),
        ("rheo export first uni", ["units="]),
        ("rheo nonsense ", []),
    ],
)
def test_what_may_follow_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, line: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    assert offered(capsys, line) == words


def test_every_verb_and_every_key_of_a_verb_is_known(capsys) -> None:
    assert offered(capsys, "rheo ") == list(VERBS)
    assert set(completion.KEYS["play"]) == set(playing.PLAYING)
    assert set(completion.KEYS["export"]) == set(EXPORTING)
    assert set(completion.KEYS["serve"]) == set(SERVING)
    assert set(completion.KEYS["compare"]) == set(verbs.COMPARISON)
    assert set(completion.KEYS["collect"]) <= {*verbs.COLLECTING, *BRANCHING}
    assert {"states", "width", "act"} <= {*completion.KEYS["collect"]}
    assert set(verbs.EVALUATION) <= set(completion.KEYS["eval"])
    assert set(completion.TAKING_RUNS) <= set(VERBS) and bench_asked and ASKED["completion"]


def test_it_needs_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from rheo.scripts.cli import main; "
        "main(['completion', 'words', 'rheo train a']); "
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "algo=\n", done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_with_it(tmp_path: Path) -> None:
    command = f"{Path(sys.executable).parent}/rheo"
    if not Path(command).exists():
        pytest.skip("rheo is not installed beside this Python")
    script = f"""
    PATH={Path(sys.executable).parent}:$PATH
    eval "$(rheo completion bash)"
    try() {{
      COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
      compopt() {{ :; }}; _rheo; echo "${{COMPREPLY[@]}}"
    }}
    try rheo tra
    try rheo train algo = sa
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "train", done.stderr


def test_other_words_are_answered(capsys) -> None:
    assert main(["completion", "fish"]) == 2
    assert "usage: rheo completion bash|zsh" in capsys.readouterr().err
    assert main(["completion", "zsh"]) == 0
    assert "compdef _rheo rheo" in capsys.readouterr().out
