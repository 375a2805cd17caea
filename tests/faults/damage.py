"""Bits that flip, files that are cut or gone: somebody says so before a number is wrong."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from inside import said
from kinds import straight
from trials import Promise, Random, Trial

KIND = "off-policy"
CUTS = (0.0, 0.5, 0.99)
WHOLES = {  # a part of a run folder -> where its files are
    "checkpoints": "ckpt/*/*",
    "config.yaml": "config.yaml",
    "metrics.jsonl": "metrics.jsonl",
    "run.json": "run.json",
    "evaluations": "eval/*",
}
VERIFY = ["checkpoint", "verify", "runs/r"]


class Harm(NamedTuple):
    """What is done to a file: a bit of it flips, it is cut, or it is gone (`cut` None)."""

    file: str
    bit: int | None = None
    cut: float | None = None

    def __str__(self) -> str:
        if self.bit is not None:
            return f"{self.file}: bit {self.bit} flipped"
        return f"{self.file}: {'gone' if self.cut is None else f'cut to {self.cut:.0%}'}"

    def do(self, folder: Path) -> None:
        """Does it."""
        file = folder / self.file
        raw = bytearray(file.read_bytes())
        if self.bit is not None:
            raw[self.bit // 8] ^= 1 << self.bit % 8
            file.write_bytes(raw)
        elif self.cut is not None:
            file.write_bytes(raw[: int(len(raw) * self.cut)])
        else:
            file.unlink()


def files(part: str) -> list[str]:
    """The files of a part of the run folder."""
    folder = straight(KIND)
    return sorted(str(f.relative_to(folder)) for f in folder.glob(WHOLES[part]) if f.is_file())


def flips(part: str, count: int, draw: Random) -> Iterator[Harm]:
    """Bits anywhere in the files of a part, each as likely as the other files'."""
    names = files(part)
    for _ in range(count):
        name = draw.choice(names)
        yield Harm(name, bit=draw.randrange(8 * (straight(KIND) / name).stat().st_size))


def cuts(part: str, count: int, draw: Random) -> list[Harm]:
    """Every file of a part cut in three places, or as many of these as asked."""
    every = [Harm(name, cut=share) for name in files(part) for share in CUTS]
    return draw.sample(every, count) if count < len(every) else every


def losses(part: str, count: int, draw: Random) -> list[Harm]:
    """Every file of a part gone."""
    every = [Harm(name) for name in files(part)]
    return draw.sample(every, count) if count < len(every) else every


@cache
def verifies() -> bool:
    """Whether the undamaged run passes `rheo checkpoint verify`, so that its refusal says much."""
    folder = straight(KIND).parents[1]
    end = said(folder, VERIFY)
    return end.code == 0 and not end.crash


def noticed(place: Path, harm: Harm) -> str:
    """Whether a damage is told of by the verb that looks for it, an evaluation or a resumption.

    A line that names the file, or a refusal; a traceback is neither.
    """
    path = Path(harm.file)
    names = (path.name, path.parent.name or path.name)  # a checkpoint is named by its folder
    attempts = [VERIFY] if verifies() else []
    attempts += [["eval", "runs/r", "episodes=1"], ["resume", "runs/r", "steps=220"]]
    for words in attempts:
        end = said(place, words)
        if end.crash:
            return f"rheo {' '.join(words)}: {end.crash}"
        if end.code or any(name in told(end.text) for name in names):
            return ""
    return "nobody noticed"


def told(text: str) -> str:
    """The warnings of a command, without the lines that always come."""
    return "\n".join(line for line in text.splitlines() if line.startswith("rheo:"))


def trial(harm: Harm) -> Trial:
    """A copy of a finished run, with one damage."""

    def copy(place: Path) -> Path:
        shutil.copytree(straight(KIND), place / "runs" / "r")
        return place / "runs" / "r"

    def do(place: Path, folder: Path) -> None:
        harm.do(folder)

    return Trial(str(harm), copy, do, lambda place, _: noticed(place, harm))


def promises() -> Iterator[Promise]:
    """A promise for every part and kind of damage."""
    for part in WHOLES:
        share = 2.0 if part == "checkpoints" else 1.0
        for title, harms in (("flipped bits", flips), ("cut files", cuts), ("lost files", losses)):

            def drawn(count: int, draw: Random, part: str = part, harms=harms) -> Iterator[Trial]:
                yield from map(trial, harms(part, count, draw))

            yield Promise("damage", f"{title} are noticed: {part}", drawn, share)


PROMISES = list(promises())
