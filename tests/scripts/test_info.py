"""`rheo info`: lists and keys, from the files and docstrings themselves."""

import subprocess
import sys
from typing import Any

import pytest

from rheo.scripts import info
from rheo.scripts.cli import main
from rheo.scripts.config import meanings, schema
from rheo.scripts.config.annotations import shown
from rheo.scripts.config.compose import compose_groups

NODES = ["algo", "policy", "critic", "eye", "source", "env"]


def targets(node: Any) -> list[str]:
    """Every `_target_` in a tree."""
    if not isinstance(node, dict):
        return []
    own = [node["_target_"]] if node.get("_target_") else []
    return own + [each for value in node.values() for each in targets(value)]


def shipped() -> list[str]:
    """What the values of all groups construct."""
    found = [t for group in ("critic", "eye", "source") for n in info.names(group) for t in
             targets(info.read(group, n).tree)]  # fmt: skip
    for name in (
        "sac",
        "rfm",
        "awm_gae",
        "reinflow",
        "dsrl_na",
        "expo",
        "resip",
        "ppo",
        "iql_gaussian",
    ):
        found += targets(compose_groups([f"algo={name}"], [], []))
    found += [str(info.target(info.read("algo", name), "algo")) for name in info.names("algo")]
    return sorted({each for each in found if each != "None"})


@pytest.mark.parametrize("target", shipped())
def test_every_class_and_every_key_says_what_it_is(target: str) -> None:
    assert meanings.title(target)
    told = meanings.of_keys(target)
    assert [key for key in schema.from_source(target).keys if not told.get(key)] == []


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
    assert "papers: arXiv:2509.25050" in text
    assert "algo.critic_lr = 0.001    (float, above 0)\n      Adam" in text
    assert main(["info", "env=hopper"]) == 0
    text = capsys.readouterr().out
    assert "env.id = Hopper-v5" in text
    assert "threads: physics" not in text and "physics threads of the native backend" in text
    assert main(["info", "policy/net=unet"]) == 0
    assert "policy.net.kernel = 5" in capsys.readouterr().out


@pytest.mark.parametrize("group", [*info.GROUPS, "data"])
def test_every_group_is_listed_without_torch(group: str) -> None:
    code = (
        "import sys; from rheo.scripts.cli import main; "
        f"code = main(['info', {group!r}]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
    told = {row[0] for row in rows if len(row) == 2}  # a name and a text
    assert told >= set(info.FORMATS if group == "data" else info.names(group))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algo=rfmm", "algo=rfmm: no such algo; did you mean 'rfm'?"),
        ("algos", "info algos: no such group; did you mean 'algo'?"),
        ("data=mine.npz", "`rheo data info mine.npz` says what is in a file"),
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
