"""`rheo info`: lists and keys, from the files and docstrings themselves."""

import subprocess
import sys

import pytest

from rheo.scripts import info
from rheo.scripts.cli import main
from rheo.scripts.config.annotations import shown
from rheo.scripts.config.suites import suites


def test_an_algorithm_is_listed_under_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "algo"]) == 0
    parts = {part.partition(":")[0]: part for part in capsys.readouterr().out.split("\n\n")}
    assert list(parts) == ["clone", "offline", "from scratch", "tune", "steer"]
    own = {"clone": "bc", "offline": "iql", "from scratch": "rfm_paper", "tune": "awm_q_tune"}
    for kind, name in (own | {"steer": "dsrl_sac"}).items():
        assert f"\n  {name} " in parts[kind]
    assert sum(part.count("\n  ") for part in parts.values()) >= len(info.names("algo"))


def test_a_choice_shows_keys_with_value_type_meaning_and_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "algo=awm_q_tune"]) == 0
    text = capsys.readouterr().out
    assert "tune: rheo train algo=awm_q_tune init=RUN env=NAME" in text
    assert "tune: rheo train algo=ctrl init=RUN data=FILE\n" in info.one("algo", "ctrl", 100)
    assert "papers: arXiv:2509.25050" in text
    assert "algo.critic_lr = 0.001    (float, above 0)\n      Adam" in text
    assert main(["info", "env=hopper"]) == 0
    text = capsys.readouterr().out
    assert "env.id = Hopper-v5" in text
    assert "env.threads = 1    (int, at least 0)\n      CPU threads for the physics" in text
    assert main(["info", "policy/net=unet"]) == 0
    assert "policy.net.kernel = 5" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["policy", "policy/net", "critic", "eye", "source", "tracker"])
def test_what_a_choice_lists_is_its_own_and_explained(group: str) -> None:
    """Not what the algorithm that it is composed with would have it be."""
    for name in info.names(group):
        head, *keys = info.one(group, name, 100).split("\n\n")
        assert all(key.partition("\n")[2].startswith("      ") for key in keys), (name, keys)
    if group == "policy":
        assert "policy.steps = 5 " in info.one(group, "flow", 100)
        assert "policy.steps" not in info.one(group, "normal", 100)


def test_a_suite_s_own_options_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    for env in ("lift", "metaworld"):
        assert main(["info", f"env={env}"]) == 0
        text = capsys.readouterr().out
        assert "env.options.stop = true\n      Whether success ends an episode" in text
    assert "env.options.sparse = true\n      Whether a solved step pays 1" in text


def test_the_keys_of_a_run_are_told_with_value_and_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "run"]) == 0
    text = capsys.readouterr().out
    assert "\nsteps = 100000    (int, at least 1)\n      Length of the run: environment" in text
    assert "\nlimits.kl = 10.0    (float, above 0 | null)\n      KL divergence" in text


@pytest.mark.parametrize("group", [*info.GROUPS, "data", "suite"])
def test_every_group_is_listed_without_torch(group: str) -> None:
    code = (
        "import sys; from rheo.scripts.cli import main; "
        f"code = main(['info', {group!r}]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if group == "suite":
        assert {f"{name}:" for name in suites()} <= set(done.stdout.split())
        assert "env=halfcheetah, hopper, walker2d, ant\n    steps=100000 eval_every" in done.stdout
        return
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
    told = {row[0] for row in rows if len(row) == 2}  # a name and a text
    assert told >= set(info.FORMATS if group == "data" else info.names(group))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algo=rfmm", "algo=rfmm: no such algo; did you mean 'rfm'?"),
        ("algos", "info algos: no such group; did you mean 'algo'?"),
        ("data=mine.npz", "`rheo data info mine.npz` says what is in a file"),
        ("suite=dcm", "suite=dcm: there is none; did you mean 'dmc'?"),
        ("run=mine", "`rheo info run` lists the keys"),
    ],
)
def test_what_there_is_not_is_answered(
    capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert main(["info", word]) == 2
    assert message in capsys.readouterr().err
    assert main(["info", "algo", "env"]) == 2
    assert "usage: rheo info" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ("Annotated[int, Range(ge=1)] | None", "int, at least 1 | null"),
        ("Literal['a', 'b'] | bool", "a | b | bool"),
        ("list[str]", "list of str"),
        ("Annotated[float, Range(gt=0, le=1)]", "float, above 0, at most 1"),
    ],
)
def test_a_type_is_told_in_words(annotation: str, text: str) -> None:
    assert shown(annotation) == text
