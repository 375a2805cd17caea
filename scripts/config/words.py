"""Words of a command line: which name a run and which are options, and values taken as they stand.

A folder or file may be called anything: `lr=0.1`, `pen [2]`, `Zürich`. So the values of the keys
that name one are not read by Hydra's grammar but taken up to the end of the word.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rheo.envs.paths import exists
from rheo.errors import RheoError, nearest

from . import programs
from .top import BESIDE

# keys whose values name files, runs and folders; or end in .path
NAMES = ("data", "init", "name", "env.model", *BESIDE)
SWEEP = ("-m", "--multirun")
QUOTES = "'\""


class Words(NamedTuple):
    """A command's arguments, sorted."""

    flagged: list[str]  # --config-dir flags, as they are passed on
    runs: list[str]  # what names a run, or whatever else the verb acts on
    options: list[str]  # key=value

    @property
    def again(self) -> list[str]:
        """Flags and options: what changes a stored configuration."""
        return [*self.flagged, *self.options]


def flags(argv: Sequence[str], errors: list[str] | None = None) -> tuple[list[str], list[str]]:
    """Folders of --config-dir, and the other words. Raises RheoError for other flags.

    What --program names is trusted from here on (`programs`). With `errors` what is wrong is added
    there, and the rest is read all the same.
    """
    folders, words, wrong = [], [], []
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name == "--config-dir":
            folder = value if equals else next(rest, "")
            if folder:
                folders.append(folder)
            else:
                wrong.append("--config-dir needs a folder")
        elif name == programs.FLAG:
            try:
                programs.trust(value if equals else next(rest, ""))
            except RheoError as error:
                wrong.append(str(error))
        elif word in SWEEP:
            wrong.append(f"{word}: `rheo sweep seed=0,1,2 name=NAME ...` needs no flag")
        elif word.startswith("-"):
            known = ["--config-dir", programs.FLAG]
            remedy = nearest(name, known) if word.startswith(("--c", "--p")) else ""
            wrong.append(f"unknown flag {word}{remedy}; values are set as key=value")
        else:
            words.append(word)
    if errors is None and wrong:
        raise RheoError(wrong[0])
    if errors is not None:
        errors += wrong
    return folders, words


def as_flags(folders: Sequence[str]) -> list[str]:
    """The words that name these folders."""
    return [word for folder in folders for word in ("--config-dir", folder)]


def divide(argv: Sequence[str], known: Container[str]) -> Words:
    """Sorts a command's arguments, in any order. Raises RheoError for an unknown flag.

    known: first parts of the keys that options have. A word is an option when it is `key=value`
    with such a key; it names a run when it is not, or when there is a folder (or file) of that
    name and nothing else on the line names one. A word that is neither a key nor a folder is taken
    for an option where another names the run: its verb says which keys there are.
    """
    folders, words = flags(argv)
    flagged = as_flags(folders)
    likely, unlikely, strange = [], [], []
    for word in words:
        key, equals, _ = word.partition("=")
        an_option = equals and root(key) in known
        if is_there(word) or not equals:
            (unlikely if an_option else likely).append(word)
        elif not an_option:
            strange.append(word)
    runs = likely or unlikely or strange[:1]
    return Words(flagged, runs, [word for word in words if word not in runs])


def root(key: str) -> str:
    """The first part of a key: algo of algo.lr and of algo/value."""
    return key.partition(".")[0].partition("/")[0]


def is_there(name: str) -> bool:
    """Whether a word is a path, or the name of a run."""
    return exists(name) or exists(Path("runs", name))


def one_run(words: Words, usage: str) -> str:
    """The one run of a command. Raises RheoError when there is none, or more."""
    if len(words.runs) != 1:
        more = f"one run is meant, and there are {', '.join(words.runs)}\n" if words.runs else ""
        raise RheoError(f"{more}{usage}")
    return words.runs[0]


class Option(NamedTuple):
    """A key of a verb: what is meant where it is left out, and how its text is read.

    read: raises ValueError with what is wrong, for a message that begins with the word.
    """

    default: Any
    read: Callable[[str], Any] = str


def values(words: Sequence[str], table: Mapping[str, Option], usage: str) -> dict[str, Any]:
    """The value of every key of `table`, read from key=value words. Raises RheoError.

    usage: what follows the message about a key that is not known.
    """
    found = {key: option.default for key, option in table.items()}
    for word in words:
        key, _, text = word.partition("=")
        if key not in table:
            raise RheoError(f"unknown option {key!r}{nearest(key, table)}{usage}")
        try:
            found[key] = table[key].read(text)
        except ValueError as error:
            raise RheoError(f"{word}: {error}") from error
    return found


def one_of(*names: str) -> Callable[[str], str]:
    """Reads one of a few names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"not known{nearest(text, names)}")
        return text

    return read


def switch(text: str) -> bool:
    """Reads true or false."""
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def count(text: str, least: int = 1) -> int:
    """Reads a whole number."""
    if not text.isdecimal() or int(text) < least:
        kinds = ("whole number that is not negative", "positive whole number")
        kind = kinds[least] if least < len(kinds) else f"whole number from {least} on"
        raise ValueError(f"a {kind} is needed")
    return int(text)


natural = partial(count, least=0)


def number(text: str) -> float:
    """Reads a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number is needed")
    return value


def positive(text: str) -> float:
    """Reads a number above 0."""
    if not number(text) > 0:
        raise ValueError("a positive number is needed")
    return float(text)


def is_literal(key: str) -> bool:
    """Whether a key's values are taken as they stand."""
    return key in NAMES or key.endswith(".path")


def literal(key: str, text: str) -> Any:
    """The value of a key that names something: the text up to the end of the word.

    `null` is nothing, a pair of quotes around the whole is left out, and data=[a,b] is a list;
    but whatever is there under the very text is meant by it.
    """
    if exists(text):
        return text
    if text == "null":
        return None
    if key == "data" and text.startswith("[") and text.endswith("]"):
        found = [str(literal("", item)) for item in items(text[1:-1])]
        return found[0] if len(found) == 1 else found
    if len(text) > 1 and text[0] in QUOTES and text[-1] == text[0]:
        return text[1:-1].replace(f"\\{text[0]}", text[0])
    return text


def items(text: str) -> list[str]:
    """The members of a list: between commas that no quotes are around."""
    found, quote = [""], ""
    for sign in text:
        if sign == "," and not quote:
            found.append("")
            continue
        if sign in QUOTES and (quote == sign or not quote and not found[-1].strip()):
            quote = "" if quote else sign
        found[-1] += sign
    return [item.strip() for item in found if item.strip()]


def stem_of(data: str | list[str] | None) -> str:
    """A short name of the data of a run."""
    first, *rest = data if isinstance(data, list) else [data]
    return Path(str(first)).stem + (f"+{len(rest)}" if rest else "")
