"""What classes say of themselves and of their keys: their docstrings, read without importing.

A key's meaning stands in the section "Args:" of the class or function that takes it, or of one that
this is made of.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from . import schema

SECTION = re.compile(r"^Args:\n((?: {4}.*\n?|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
ARXIV = re.compile(r"arXiv:\d{4}\.\d{4,5}")
NETWORKS = "rheo.policies."
COMMON = {  # keys of networks that mean the same wherever the class does not say otherwise
    "width": "Units of each hidden layer.",
    "depth": "Number of hidden layers.",
    "activation": "Nonlinearity between the layers: relu, silu, mish, gelu or tanh.",
    "layer_norm": "Whether each hidden layer is layer-normalised before its activation.",
    "log_std_min": "Lower bound of the log standard deviation of an element before the tanh.",
    "log_std_max": "Upper bound of the log standard deviation of an element before the tanh.",
}
Defined = ast.ClassDef | ast.FunctionDef


def lineage(target: str) -> list[tuple[Defined, Path]]:
    """The class or function that a target names and the classes that it is made of, its own first.

    Raises RheoError for a target that is not there.
    """
    schema.from_source(target)
    _, file, name = schema.find(target)
    node = next(n for n in schema.parse(file).body if schema.named(n, name))
    assert isinstance(node, Defined)
    found = [*ancestors(node, file)]
    return list(dict.fromkeys(reversed(found)))[::-1]  # a shared base behind all that build on it


def ancestors(node: Defined, file: Path) -> Iterator[tuple[Defined, Path]]:
    """A definition, and its bases, or what a function returns, as far as their source is ours."""
    yield node, file
    for base in node.bases if isinstance(node, ast.ClassDef) else [node.returns]:
        found = schema.definition(base.id, file) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[0], ast.ClassDef):
            yield from ancestors(found[0], found[1])


def texts(target: str) -> list[str]:
    """Docstrings of a target: its own, its constructor's, those of what it is made of."""
    found = []
    for node, _ in lineage(target):
        inner = [each for each in node.body if schema.named(each, "__init__")]
        docs = [ast.get_docstring(each) for each in (node, *inner) if isinstance(each, Defined)]
        found += [doc for doc in docs if doc]
    return found


def title(target: str) -> str:
    """The first sentence about a target, on one line."""
    return sentence(next(iter(texts(target)), "").partition("\n\n")[0])


def sentence(text: str) -> str:
    """The first sentence of a text, on one line."""
    return re.split(r"(?<=[^.][.])(?<!eq\.)\s", " ".join(text.split()), maxsplit=1)[0]


def papers(target: str) -> list[str]:
    """The papers that a target's own docstring names."""
    return list(dict.fromkeys(ARXIV.findall("\n".join(texts(target)[:1]))))


def has(target: str, attribute: str) -> bool:
    """Whether a class or one that it is made of gives a class attribute another value than None."""
    for node, _ in lineage(target):
        for item in node.body:
            names = (
                [item.target] if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [])
            )
            if any(isinstance(name, ast.Name) and name.id == attribute for name in names):
                value = getattr(item, "value", None)
                return not (isinstance(value, ast.Constant) and value.value is None)
    return False


def of_keys(target: str) -> dict[str, str]:
    """What each key of a target means, as the nearest class in its lineage documents it."""
    told = of_all(target)
    return {key: told[key] for key in schema.from_source(target).keys if key in told}


def of_all(target: str) -> dict[str, str]:
    """What a target's docstrings say of any parameter, those that are no keys included."""
    told = dict(COMMON) if target.startswith(NETWORKS) else {}
    for doc in reversed(texts(target)):
        told |= arguments(doc)
    return told


def arguments(doc: str) -> dict[str, str]:
    """The entries of a docstring's section "Args:" (Google's style), each on one line."""
    section = SECTION.search(doc)
    found = ENTRY.findall(section[1]) if section else []
    return {name: " ".join(text.split()) for name, text in found}
