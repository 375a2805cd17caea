"""Chunks of actions of which one is better than the other: what branches came to, or labels.

An npz file holds `observations` [S, Do], `chosen` and `rejected` [S, T, Da]; of branches also the
`chunks` [S, K, T, Da] that were tried and their `returns` [S, K].
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...files import atomically
from ..paths import expanded
from .bulk import on_disk, refuse_bomb
from .columns import held
from .containers import kind_of, npz, scalar
from .faults import TOLERANCE
from .recording import Column, Refused, fill, refuse
from .told import COUNT, KNOWN, TABLE, TEXTS, Kind, as_number, decoded, some, typed
from .writing import write_npz

FORMAT = "rheo-pairs"
AXES = {  # of the arrays, in words
    "observations": ("S", "Do"),
    "chosen": ("S", "T", "Da"),
    "rejected": ("S", "T", "Da"),
    "chunks": ("S", "K", "T", "Da"),
    "returns": ("S", "K"),
}
LABELS, BRANCHES = ("observations", "chosen", "rejected"), ("chunks", "returns")
ACTIONS = ("chosen", "rejected", "chunks")
OWN = ("episode", "step")  # written for whoever looks at a file


def as_share(value: Any) -> float | None:
    """A number from 0 to 1."""
    found = as_number(value)
    return found if found is not None and 0 <= found <= 1 else None


TOLD = KNOWN | {
    **dict.fromkeys(("run", "checkpoint_sha256", "act"), TEXTS),
    **dict.fromkeys(("checkpoint_step", "seed", "states", "width", "ties", "broken"), COUNT),
    **dict.fromkeys(("horizon", "execute", "steps"), COUNT),
    **{"discount": Kind("a number from 0 to 1", as_share), "deployment": TABLE},
}
log = logging.getLogger("rheo")


class Pairs(NamedTuple):
    """S observations, at each a chunk that is preferred to another one."""

    obs: NDArray  # [S, Do] float32: what a policy observes, its history included
    chosen: NDArray  # [S, T, Da] float32 in [-1, 1]
    rejected: NDArray  # [S, T, Da] likewise
    chunks: NDArray | None  # [S, K, T, Da]: all that were tried, None where labels alone are known
    scores: NDArray | None  # [S, K] float32: what each of them came to
    about: dict[str, Any]  # path, env_id, discount, steps ..., as far as the file tells

    @property
    def arrays(self) -> dict[str, NDArray]:
        """What there is, by its key in a file."""
        values = (self.obs, self.chosen, self.rejected, self.chunks, self.scores)
        named = zip((*LABELS, *BRANCHES), values, strict=True)
        return {key: value for key, value in named if value is not None}


def pairs_of(obs: NDArray, chunks: NDArray, scores: NDArray, about: dict[str, Any]) -> Pairs:
    """The best and the worst of the chunks [S, K, T, Da] of each observation [S, Do].

    Observations whose chunks all have one score say nothing: they are left out of all arrays, and
    about["ties"] counts them beside those that it counts already.
    """
    differ = scores.max(1) > scores.min(1)
    about = {**about, "ties": about.get("ties", 0) + int((~differ).sum())}
    obs, chunks, scores = obs[differ], chunks[differ], scores[differ]
    rows = np.arange(len(obs))
    best, worst = chunks[rows, scores.argmax(1)], chunks[rows, scores.argmin(1)]
    return Pairs(obs, best, worst, chunks, scores, about)


def write_pairs(pairs: Pairs, path: str | os.PathLike, **more: NDArray) -> None:
    """Writes an npz file; it appears whole or not at all. Raises Unwritten.

    more: further arrays [S, ...].
    """
    file = expanded(path)
    content = {key: held(array) for key, array in {**pairs.arrays, **more}.items()}
    told = {key: value for key, value in pairs.about.items() if value is not None}
    told = {key: value for key, value in told.items() if key in TOLD} | {"format": FORMAT}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomically(file, lambda part: write_npz(part, content, told))


# ---- reading -------------------------------------------------------------------------------------


def is_pairs(path: str | os.PathLike) -> bool:
    """Whether a file holds pairs, as far as the names of its arrays tell."""
    try:
        if kind_of(expanded(path)) != "npz":
            return False
        with npz(expanded(path)) as (columns, _):
            told = {*LABELS[1:]} <= {*columns} or {*BRANCHES} <= {*columns}
            return told and "actions" not in columns
    except Refused:
        return False


def refuse_other(path: str | os.PathLike) -> None:
    """Raises Refused for a file whose headers say that it holds no pairs."""
    with opened(path) as (columns, _):
        arrays = {key: columns[key] for key in AXES if key in columns}
        refuse_lacking(str(path), arrays, [*columns])
        refuse_shapes(str(path), arrays)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[tuple[dict[str, Column], dict[str, Any]]]:
    """Columns and attributes of a file. Raises Refused for what is no npz."""
    kind = kind_of(expanded(path))
    if kind != "npz":
        raise refuse(str(path), f"is {kind}; pairs are read from a .npz with {', '.join(LABELS)}")
    with npz(expanded(path)) as found:
        yield found


def read_pairs(path: str | os.PathLike, *, big: bool = False) -> Pairs:
    """The pairs of a file. Raises Refused that names file, key, row and value.

    Where a file has chunks and returns alone, the pairs are the best and the worst (`pairs_of`).
    big: whether the file may become far more in memory than it is on disk (`bulk`).
    """
    name = str(path)
    with opened(path) as (columns, attributes):
        plain = {key: column for key, column in columns.items() if not column.shape}
        said = {key: decoded(scalar(name, plain[key], key)) for key in plain if key in TOLD}
        about = {"path": name, **tell(name, said | attributes)}
        unread = sorted({*columns} - {*plain, *AXES, *OWN})
        if unread:
            log.info("data=%s: not read are %s", name, some(unread))
        arrays = {key: columns[key] for key in AXES if key in columns}
        refuse_lacking(name, arrays, [*columns])
        refuse_shapes(name, arrays)
        needed = sum(4 * int(np.prod(column.shape)) for column in arrays.values())
        refuse_bomb(name, needed, on_disk(expanded(path)), big)
        read = {key: loaded(column) for key, column in arrays.items()}
    for key, array in read.items():
        refuse_numbers(name, key, array)
    for key in filter(read.__contains__, ACTIONS):
        np.clip(read[key], -1, 1, out=read[key])  # rounding
    if "chosen" not in read:
        pairs = pairs_of(read["observations"], read["chunks"], read["returns"], about)
        if not len(pairs.obs):
            raise refuse(name, "the chunks of every row have one return: none is better", "returns")
        every, lost = len(read["observations"]), len(read["observations"]) - len(pairs.obs)
        if lost:
            text = "data=%s: %d of %d observations have chunks of one return: they are left out"
            log.warning(text, name, lost, every)
        return pairs
    labels, tried = [read[key] for key in LABELS], [read.get(key) for key in BRANCHES]
    pairs = Pairs(labels[0], labels[1], labels[2], tried[0], tried[1], about)
    refuse_contradiction(name, pairs)
    return pairs


def tell(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a file says, what is known. Raises Refused for a value of another type."""
    known = {key: attributes[key] for key in TOLD if attributes.get(key) is not None}
    return {key: typed(name, key, value, TOLD[key]) for key, value in known.items()}


def loaded(column: Column) -> NDArray:
    """A column in memory, float32."""
    array = np.empty(column.shape, np.float32)
    fill(array, column)
    return array


def refuse_lacking(name: str, arrays: Mapping[str, Column], there: list[str]) -> None:
    """Raises Refused where there are not enough arrays to make pairs of."""
    begun = [group for group in (LABELS[1:], BRANCHES) if {*group} & {*arrays}] or [LABELS[1:]]
    wanted = ["observations", *(key for group in begun for key in group)]
    lacking = next((key for key in wanted if key not in arrays), None)
    if lacking is not None:
        text = f"no key {lacking!r}; it holds {some(sorted(there)) or 'nothing'}"
        raise refuse(name, f"{text}; pairs are {', '.join(LABELS)}", lacking)


def refuse_shapes(name: str, arrays: Mapping[str, Column]) -> None:
    """Raises Refused for arrays that do not fit each other."""
    known: dict[str, tuple[int, str]] = {}  # axis -> its length and the array that it is of
    for key, (shape, dtype, _) in arrays.items():
        axes = AXES[key]
        if len(shape) != len(axes) or dtype.kind not in "fiu" or 0 in shape:
            expected = f"expected numbers [{', '.join(axes)}], at least one of each"
            raise refuse(name, f"has shape {shape} and type {dtype}, {expected}", key)
        for axis, length in zip(axes, shape, strict=True):
            other, whose = known.setdefault(axis, (length, key))
            if length != other:
                text = f"has shape {shape}, so {axis} is {length:,}, but {other:,} in {whose}"
                raise refuse(name, f"{text}; they are [{', '.join(axes)}]", key)
    if known.get("K", (2, ""))[0] < 2:
        raise refuse(name, "one chunk for an observation; two make a pair", known["K"][1])


def refuse_numbers(name: str, key: str, array: NDArray) -> None:
    """Raises Refused for numbers that are not finite, and for actions outside of the box."""
    wrong, what = ~np.isfinite(array), "is not finite; mend it, or leave its row out everywhere"
    if key in ACTIONS and not wrong.any():
        wrong = np.abs(array) > 1 + TOLERANCE
        what = "is outside of [-1, 1], the unit of a policy's actions: 2 (a - low) / (high - low) "
        what += "- 1 for the environment's bounds"
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        raise refuse(name, f"row {place[0]}, at {list(place)}: {what}", key, float(array[place]))


def refuse_contradiction(name: str, pairs: Pairs) -> None:
    """Raises Refused where returns call other chunks the best and the worst than the file does."""
    if pairs.chunks is None or pairs.scores is None:
        return
    for key, end in (("chosen", pairs.scores.max(1)), ("rejected", pairs.scores.min(1))):
        same = (pairs.chunks == pairs.arrays[key][:, None]).all((2, 3))
        wrong = ~(same & (pairs.scores == end[:, None])).any(1)
        if wrong.any():
            row, most = int(np.flatnonzero(wrong)[0]), "largest" if key == "chosen" else "smallest"
            text = f"row {row} is none of the chunks with the {most} of returns, {end[row]:g}"
            raise refuse(name, f"{text}; leave out chosen and rejected, or chunks and returns", key)
