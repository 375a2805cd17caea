"""Every key that a configuration can set has one sentence of its own, in its class's Args."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rheo.scripts import info
from rheo.scripts.config import meanings, schema
from rheo.scripts.config.top import HOME, MEANINGS, walk

MOST = 35  # words of a meaning


def nodes(tree: Any) -> Iterator[str]:
    """Every `_target_` in a tree."""
    if isinstance(tree, dict):
        if tree.get("_target_"):
            yield tree["_target_"]
        for value in tree.values():
            yield from nodes(value)


@lru_cache
def shipped() -> list[str]:
    """What the files of configs construct."""
    files = [yaml.safe_load(file.read_text()) for file in HOME.rglob("*.yaml")]
    return sorted({target for tree in files for target in nodes(tree)})


def fault(text: str) -> str:
    """What is wrong with a meaning; empty where nothing is."""
    if not text:
        return "missing"
    if not text[0].isupper() or not text.endswith("."):
        return "not a sentence"
    if len(re.findall(r"[.!?](?= [A-Z0-9]|$)", text)) > 2:
        return "more than two sentences"
    return f"more than {MOST} words" if len(text.split()) > MOST else ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "missing"),
        ("of the ratio.", "not a sentence"),
        ("Adam", "not a sentence"),
        ("One. Two. Three.", "more than two sentences"),
        (" ".join(["Word"] * 36) + ".", "more than 35 words"),
        ("Share of rows, as 0.5 of them. 0: none.", ""),
    ],
)
def test_a_text_that_tells_nothing_is_told_from_one_that_does(text: str, found: str) -> None:
    assert fault(text) == found


@pytest.mark.parametrize("target", shipped())
def test_every_class_has_a_title_and_every_key_a_sentence_of_its_own(target: str) -> None:
    assert meanings.title(target)
    told = meanings.of_keys(target)
    faults = {key: fault(told.get(key, "")) for key in schema.from_source(target).keys}
    assert {key: text for key, text in faults.items() if text} == {}
    twice = [
        (one, other)
        for one, text in told.items()
        for other, its in told.items()
        if one != other and text.rstrip(".") in its
    ]
    assert twice == []


def test_every_key_of_a_run_beside_its_groups_has_a_sentence_of_its_own() -> None:
    tree = yaml.safe_load((HOME / "config.yaml").read_text())
    assert set(MEANINGS) == {key for key, _ in walk(tree) if not key.startswith("defaults")}
    assert {key: fault(text) for key, text in MEANINGS.items() if fault(text)} == {}
    assert len(set(MEANINGS.values())) == len(MEANINGS)


@pytest.mark.parametrize("target", info.SUITES.values())
def test_every_option_of_a_suite_has_a_sentence(target: str) -> None:
    told = meanings.of_all(target)
    slots = schema.from_source(target).slots
    assert {name: fault(told.get(name, "")) for name in slots if fault(told.get(name, ""))} == {}


@lru_cache
def documented() -> dict[str, str]:
    """The own docstrings of each class and function that shipped ones are made of."""
    found = {}
    for target in shipped():
        for node, file in meanings.lineage(target):
            inner = [one for one in node.body if schema.named(one, "__init__")]
            parts = [one for one in (node, *inner) if isinstance(one, meanings.Defined)]
            docs = "\n\n".join(filter(None, map(ast.get_docstring, parts)))
            place = file.relative_to(HOME.parent).with_suffix("")
            found[".".join(["rheo", *place.parts, node.name])] = docs
    return found


@pytest.mark.parametrize("target", sorted(documented()))
def test_args_are_of_parameters_and_told_nowhere_else(target: str) -> None:
    doc = documented()[target]
    own, told = schema.from_source(target), meanings.arguments(doc)
    assert [name for name in told if name not in {*own.keys, *own.slots}] == []
    section = meanings.SECTION.search(doc)
    lines = section[1].splitlines() if section else []
    assert len([line for line in lines if re.match(r" {4}\S", line)]) == len(told)
    prose = doc.replace(section[0], "") if section else doc
    assert [key for key in own.keys if re.search(rf"(?:\A|\n\n|[.;]\s){key}:\s", prose)] == []


def test_the_class_that_says_another_thing_is_heard_before_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(
        'class Base:\n    """A base.\n\n    Args:\n        rate: Rate of the base.\n'
        '        size: Size of\n            both.\n    """\n'
        "    def __init__(self, *, rate: float, size: int): ...\n\n\n"
        'class Left(Base):\n    """Its own rate.\n\n    Args:\n        rate: Rate of the left.\n\n'
        '    Raises ValueError for nothing.\n    """\n\n\n'
        'class Right(Base):\n    """Nothing of its own."""\n\n\n'
        'class Both(Right, Left):\n    """Of both."""\n\n\n'
        'def made(*, rate: float, size: int) -> Left:\n    """Makes one."""\n'
    )
    monkeypatch.setattr(schema, "allowed", [tmp_path])
    both = {"rate": "Rate of the left.", "size": "Size of both."}
    assert meanings.of_keys("own_parts.Left") == both
    assert meanings.of_keys("own_parts.Both") == both
    assert meanings.of_keys("own_parts.made") == both
    assert meanings.of_keys("own_parts.Right") == both | {"rate": "Rate of the base."}
