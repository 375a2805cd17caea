"""YAML and words of other people: nothing in them is evaluated, and none takes long."""

import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose, load
from rheo.scripts.config.yamls import LARGEST, refuse_growth
from rheo.scripts.store.where import stored

SECRET = "hunter2-secret"
CALLS = [  # each reads the environment in OmegaConf, whose resolvers `oc.*` are always there
    "${oc.env:TOKEN}", "${${recipe}:TOKEN}", "${oc.${name}:TOKEN}", "a${${recipe}:TOKEN}b",
    "${ oc.env:TOKEN}", "${oc.env:TOKEN,${seed}}", "x ${seed} ${oc.env:TOKEN}", "${oc.env:${name}}",
]  # fmt: skip
ODD = ["${.seed}", "${..seed}", "${env[id]}", "${}", "\\${oc.env:TOKEN}", "${a b}", "${seed", "${"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A run folder of a small configuration, and a variable that is nobody else's business."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", SECRET)
    folder = tmp_path / "runs" / "got"
    folder.mkdir(parents=True)
    config = compose(["algo=sac", "env=inverted_pendulum", "name=env"]) | {"recipe": "oc.env"}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return folder


def put(folder: Path, text: str) -> None:
    """Writes a text as the id of the run's environment."""
    file = folder / "config.yaml"
    lines = file.read_text().splitlines()
    place = lines.index("  id: InvertedPendulum-v5")
    lines[place] = "  id: '" + text.replace("'", "''") + "'"
    file.write_text("\n".join(lines))


@pytest.mark.parametrize("text", [*CALLS, *ODD])
def test_only_plain_keys_are_followed_wherever_a_text_comes_from(here, capsys, text):
    put(here, text)
    before = (here / "config.yaml").read_text()
    for words in (["eval", "got"], ["resume", "got"]):
        assert main(words) == 2
        told = capsys.readouterr()
        assert "resolvers are not evaluated" in told.err and SECRET not in told.err + told.out
    assert (here / "config.yaml").read_text() == before
    mine = here.parent / "mine" / "env"
    mine.mkdir(parents=True)
    (mine / "odd.yaml").write_text(f"# a remark: ${{oc.env:TOKEN}}\nid: '{text}'\n")
    for words in (
        ["train", "algo=sac", "recipe=oc.env", "name=env", f"env.id='{text}'"],
        ["train", "algo=sac", f"data={text}"],
        ["train", "algo=sac", "env=odd", "--config-dir", str(mine.parent)],
    ):
        assert main(words) == 2
        told = capsys.readouterr()
        assert "resolvers are not evaluated" in told.err and SECRET not in told.err + told.out


def test_a_plain_key_is_followed(here):
    put(here, "${name}-v5")
    with pytest.raises(RheoError, match="env.id='env-v5': no such environment"):
        load(here)


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BOMBS = {
    "aliases": (LAUGHS, r"config.yaml, line 1: &a and \*a are not read"),
    "itself": ("a: &a [*a]\n", "are not read in a configuration"),
    "size": ("a: " + "x" * LARGEST, "bytes; a configuration has 1,048,576 at most"),
    "brackets": ("a: " + "[" * 3000, "50 levels deep at most"),
    "levels": ("a: " + "{b: " * 60 + "1" + "}" * 60, "50 levels deep at most"),
    "values": ("".join(f"k{i}: 1\n" for i in range(50_000)), "of 10,000 values at most"),
    "braces": ("a: " + "${" * 100_000, "resolvers are not evaluated"),
    "empty": ("", "holds no configuration"),
    "digits": ("a: " + "1" * 900_000, "not readable as a configuration"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_configuration_that_would_grow_is_answered_at_once(here, name):
    text, told = BOMBS[name]
    (here / "config.yaml").write_text(text)
    start = time.process_time()
    with pytest.raises(RheoError, match=told) as caught:
        stored(here)
    assert time.process_time() - start < 2 and len(str(caught.value)) < 3000


@pytest.mark.parametrize(
    "tree",
    [
        {f"k{i}": f"${{k{i + 1}}}${{k{i + 1}}}" for i in range(40)} | {"k40": "x"},
        {f"k{i}": {"a": f"${{k{i + 1}}}", "b": f"${{k{i + 1}}}"} for i in range(40)} | {"k40": 1},
        {"many": [["${text}"] * 100], "text": "x" * 20_000},
        {f"k{i}": f"${{k{i + 1}}}" for i in range(5_000)},
    ],
)
def test_links_that_unfold_without_end_are_refused(tree):
    start = time.process_time()
    with pytest.raises(RheoError, match="unfold to more than 10,000 values"):
        refuse_growth(tree)
    assert time.process_time() - start < 1


def test_shipped_configurations_and_a_loop_are_no_bombs(here):
    refuse_growth({"a": "${b}", "b": "${a}"})  # which OmegaConf names
    refuse_growth(compose(["algo=dsrl_na", "init=scratch", "env=hopper"]))


def test_brackets_without_end_on_the_command_line_are_answered(capsys):
    assert main(["train", "algo=sac", "env=hopper", f"horizon={'[' * 3000}"]) == 2
    assert "3000 brackets inside each other" in capsys.readouterr().err
