"""YAML and words of other people: nothing in them is evaluated, and none takes long."""

import random
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.config.compose import HOME, compose, load
from rheo.scripts.config.links import Links
from rheo.scripts.config.yamls import LARGEST, read, refuse_growth
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


GROWN = {  # what a run's options may be, within the limits of a file, and what is said of it
    "links to nothing": ({f"k{i}": "${a.b}" for i in range(2000)}, "follows a.b, which is not"),
    "links in a text": ({"a": "${seed} " * 9000}, ""),
    "values": ({f"k{i}": "x" * 90 for i in range(4800)}, ""),
    "a text": ({"a": "x " * 450_000}, ""),
    "nodes": ({f"k{i}": {"_target_": "rheo.algos.sac.SAC"} for i in range(1500)}, " more"),
    "a list that is called": ({"a": {"_target_": ["x"]}}, "['x'] is not of the form package"),
    "a dictionary that is called": ({"_target_": {"a": 1}}, "{'a': 1} is not of the form package"),
}


@pytest.mark.parametrize("name", GROWN)
def test_a_full_configuration_is_answered_at_once_and_in_no_more_than_a_screen(here, name):
    """Minutes, in the first case, and a traceback in the last two, before they were mended."""
    options, told = GROWN[name]
    config = OmegaConf.to_container(OmegaConf.create((here / "config.yaml").read_text()))
    assert isinstance(config, dict)
    config["env"]["options"] = options
    config["recipe"] = None
    (here / "config.yaml").write_text(yaml.safe_dump(config))
    start = time.process_time()
    try:
        load(here)
        said = ""
    except RheoError as error:
        said = str(error)
    assert time.process_time() - start < 2 and told in said and bool(told) == bool(said)
    assert said.count("\n") <= 102


@pytest.mark.parametrize("key", ["episodes", "name", "limits.q", "env.options.a"])
def test_a_link_to_nothing_is_told_by_its_key_wherever_it_stands(key):
    with pytest.raises(RheoError, match=rf"^{key}: follows x\.y, which is not there; set {key}="):
        compose(["algo=sac", "env=hopper", f"{key}=${{x.y}}"])


SCALARS = (
    *("1", "1.5", "1e3", "1e-3", "1.e3", ".5", "-0", "+7", "0x1f", "0o17", "017", "0b11", "1_000"),
    *("1:30", "1:30.5", "true", "Yes", "off", "y", "null", "~", "''", '"a"', "2020-01-02", ".inf"),
    *("-.Inf", ".nan", "1e400", "a b", "${seed}", "'${seed}'", "[1, a]", "{a: [1]}", "{1: a}"),
    *("|\n  x\n  y\n", ">\n  x\n  y\n", "{<<: {a: 1}, b: 2}", "'2020-01-02'", "1__0", "é"),
)


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_value_is_read_as_omegaconf_reads_it(tmp_path, scalar):
    file = tmp_path / "x.yaml"
    file.write_text(f"a: {scalar}\n")
    theirs = OmegaConf.to_container(OmegaConf.create(file.read_text()))
    assert repr(read(file)) == repr(theirs)


@pytest.mark.parametrize("file", sorted(HOME.rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_file_is_read_as_omegaconf_reads_it(file):
    theirs = OmegaConf.to_container(OmegaConf.create(file.read_text()))
    assert repr(read(file) or {}) == repr(theirs)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2\n", "found duplicate key a"),
        ("a: !!binary aGk=\n", "a is a bytes, no value of YAML's own"),
        ("a: !!set {b}\n", "a is a set"),
        ("a: !!timestamp 2020-01-02\n", "a is a date"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("~: 1\n", "None is no key"),
        ("[1]: 1\n", "unhashable"),
    ],
)
def test_what_is_no_value_of_a_configuration_is_refused(tmp_path, text, told):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises((RheoError, yaml.YAMLError), match=told):
        read(file)


def linked(draw: random.Random, depth: int = 0, escapes: bool = False):
    """A node with links, most of which lead somewhere.

    escapes: some are none; not where links lead, behind which OmegaConf reads a text once more.
    """
    kind = draw.randrange(8 if depth < 3 else 6)
    names = ["a", "b", "c", "a.b", "b.a", "c.b.a", "a.0", "b.1", "d"]
    if kind == 0:
        return f"${{{draw.choice(names)}}}"
    if kind == 1:
        slashes = "\\" * (draw.randrange(4) if escapes else 0)
        return f"x {slashes}${{{draw.choice(names)}}}{draw.choice(['', ' ${d}', '/y', chr(92)])}"
    if kind < 6:
        return draw.choice([1, 2.5, True, None, "text", "\\d", "1", -3])
    if kind == 6:
        return [linked(draw, depth + 1, escapes) for _ in range(draw.randrange(3))]
    return {key: linked(draw, depth + 1, escapes) for key in draw.sample("abc", draw.randrange(3))}


def test_links_mean_what_they_mean_to_omegaconf():
    """Of eight hundred trees those that it resolves; where it does not, one link leads nowhere."""
    draw, same = random.Random(3), 0
    for _ in range(800):
        tree = {key: linked(draw) for key in "abc"} | {"d": "end", "e": linked(draw, escapes=True)}
        links, theirs = Links(tree), None
        try:
            mine = links.plain(tree)
        except RheoError:
            mine = None
        with suppress(OmegaConfBaseException, RecursionError):
            theirs = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
        if re.search(r"x .*(\{['}]|\[)", str(theirs)):
            continue  # a group in a text, of which OmegaConf makes Python's own
        if theirs is not None:
            assert mine == theirs and not links.lost, tree
            same += any("${" in str(value) for value in tree.values())
        else:
            assert mine is None or links.lost, tree
    assert same > 120


def test_a_link_to_itself_is_named():
    with pytest.raises(RheoError, match=r"\$\{b\} leads back to itself"):
        Links({"a": "${b}", "b": "x ${a}"}).plain({"a": "${b}", "b": "x ${a}"})


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
