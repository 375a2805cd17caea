"""What classes say of themselves and of their keys: their docstrings, read without importing."""

import ast
import re
from collections.abc import Container, Iterator
from pathlib import Path

from . import schema

NAMES = re.compile(r"(?<![\w.=`])(\w+(?:(?:, | and | or )\w+)*): ")
SENTENCE = re.compile(r"(?<=[.;]) (?=\S)")
ELSEWHERE = re.compile(r"as (?:in|of) `(\w+)`")
ARXIV = re.compile(r"arXiv:\d{4}\.\d{4,5}")
COMMON = {  # keys that mean the same in every network
    "width": "units of a hidden layer",
    "depth": "hidden layers",
    "activation": "between layers: a function of torch.nn.functional, such as relu, silu, tanh",
    "layer_norm": "normalise each hidden layer before its activation",
    "members": "networks, of whose values the smallest counts",
    "log_std_min": "least log standard deviation",
    "log_std_max": "largest log standard deviation",
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
    return list(dict.fromkeys(ancestors(node, file)))


def ancestors(node: Defined, file: Path) -> Iterator[tuple[Defined, Path]]:
    """A definition, and its bases as far as their source is ours."""
    yield node, file
    for base in getattr(node, "bases", ()):
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
    """What the docstrings say of each key.

    "clip: of the ratio." up to the next key or the paragraph's end; of a key that has no such place
    the sentences that name it.
    """
    keys = schema.from_source(target).keys
    paragraphs = flowing(texts(target))
    told = introduced(paragraphs, target)
    for key, text in told.items():
        there = ELSEWHERE.match(text)
        if there:
            other = f"{target.rpartition('.')[0]}.{there[1]}"
            told[key] = introduced(flowing(texts(other)), other).get(key, text)
    sentences = [each for paragraph in paragraphs for each in SENTENCE.split(paragraph)]
    for key in keys:
        naming = [each for each in sentences if re.search(rf"(?<![\w.]){key}(?![\w=])", each)]
        if key not in told and (naming or key in COMMON):
            told[key] = COMMON.get(key) or " ".join(naming[:2])
    return told


def flowing(docs: list[str]) -> list[str]:
    """Paragraphs of docstrings, each on one line."""
    return [" ".join(part.split()) for text in docs for part in text.split("\n\n")]


def introduced(paragraphs: list[str], target: str) -> dict[str, str]:
    """What follows where a target's parameters are introduced, the first place of each."""
    own, told = schema.from_source(target), {}
    for paragraph in paragraphs:
        for names, text in marked(paragraph, {*own.keys, *own.slots}):
            for name in names:
                told.setdefault(name, text)
    return told


def marked(paragraph: str, keys: Container[str]) -> list[tuple[list[str], str]]:
    """The keys that a paragraph introduces ("a, b and c: ..."), each with what follows."""
    found = []
    for match in NAMES.finditer(paragraph):
        names = re.split(r", | and | or ", match[1])
        while names and names[0] not in keys:
            names = names[1:]  # "of T. rate and clip:" begins with other words
        if names and all(name in keys for name in names):
            found.append((names, match.start(), match.end()))
    starts = [start for _, start, _ in found] + [len(paragraph)]
    return [
        (names, paragraph[after : starts[i + 1]].partition(" Raises ")[0].strip())
        for i, (names, _, after) in enumerate(found)
    ]
