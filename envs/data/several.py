"""Recordings of one kind end to end: several files, or a folder of episodes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..parts import refuse_filter
from .recording import Part, Reading, Recording, Sizes, refuse, stack

log = logging.getLogger("rheo")
SAME = ("obs_keys", "env_id", "control_mode")  # in all files that tell them
UNIT = ("action_scale", "action_low", "action_high")  # in all files or in none, if they are read


class Layout(Protocol):
    """An opened file, as in `formats`."""

    def sizes(self) -> Sizes: ...

    def read(self, storage: str) -> Recording: ...

    def about(self) -> dict[str, Any]: ...


Open = Callable[[str, Reading], AbstractContextManager[Layout]]


def joined(recordings: Sequence[Recording]) -> Recording:
    """Recordings of one kind, all in memory, end to end."""
    parts = (part for recording in recordings for part in episodes(recording))
    return stack("memory", parts, total([sizes_of(one) for one in recordings]), "ram", {})


def sizes_of(recording: Recording) -> Sizes:
    """The sizes of a recording."""
    known, reward = int((recording.successor >= 0).sum()), recording.reward is not None
    dims = recording.obs.shape[1], recording.action.shape[1]
    return Sizes(len(recording.action), len(recording.ends), known, *dims, reward)


def episodes(recording: Recording) -> Iterator[Part]:
    """The episodes of a recording."""
    jumps = np.asarray(recording.about.get("jumps", ()), np.int64)
    start = 0
    for end, successor in zip(recording.ends.tolist(), recording.successor.tolist(), strict=True):
        rows = slice(start, end)
        yield Part(
            recording.obs[rows],
            recording.action[rows],
            None if recording.reward is None else recording.reward[rows],
            bool(recording.terminated[end - 1]),
            recording.obs[successor] if successor >= 0 else None,
            jumps[(jumps >= start) & (jumps < end)] - start if len(jumps) else jumps,
        )
        start = end


def total(sizes: Sequence[Sizes]) -> Sizes:
    """The sizes of all recordings together."""
    first = sizes[0]
    steps, count, known = (sum(column) for column in list(zip(*sizes, strict=True))[:3])
    return first._replace(
        steps=steps, episodes=count, successors=known, reward=all(one.reward for one in sizes)
    )


class Several:
    """Files that are read one after the other, so that few are open and few are in memory.

    Raises Refused naming the first file that differs from the first one in the sizes of
    observations or actions, in their keys, or in what it tells of environment and actions.
    """

    def __init__(self, path: str, files: Sequence[str], reading: Reading, opened: Open) -> None:
        self.path, self.files, self.reading, self.opened = path, list(files), reading, opened
        self.each: list[Sizes] = []
        self.told: list[dict[str, Any]] = []
        for file in self.files:
            with opened(file, reading) as layout:
                self.each.append(layout.sizes())
                self.told.append(layout.about())
            self.compare(file)
        self.note()

    def compare(self, file: str) -> None:
        """Raises Refused where a file differs from the first."""
        refuse_filter(file, self.reading, self.told[-1])
        first, this = self.each[0], self.each[-1]
        for key, what in (("obs_dim", "observations"), ("action_dim", "actions")):
            mine, theirs = getattr(this, key), getattr(first, key)
            if mine != theirs:
                text = f"has {mine} dimensions, {theirs} in {self.files[0]}"
                raise refuse(file, f"{text}; recordings of one kind are joined", what)
        unit = UNIT if self.reading.action_scale in ("auto", "recorded") else ()
        for key in (*SAME, *unit):
            mine = self.told[-1].get(key)
            before = [(f, t.get(key)) for f, t in zip(self.files, self.told, strict=False)]
            told = [one for one in before if one[1] is not None or key in UNIT]
            other, theirs = told[0] if told else (file, mine)
            if mine != theirs and (mine is not None or key in UNIT):
                mine, theirs = ("not told" if one is None else one for one in (mine, theirs))
                text = f"is {mine}, and {theirs} in {other}; recordings of one kind are joined"
                raise refuse(file, text, key)

    def note(self) -> None:
        """Says what differs and does not keep the files from being joined."""
        lacking = [f for f, one in zip(self.files, self.each, strict=True) if not one.reward]
        if lacking and len(lacking) < len(self.files):
            text = "data=%s: no rewards in %s, so those of the other files are not used"
            log.warning(text, self.path, lacking[0])
        pairs = zip(self.files, self.told, strict=True)
        rates = {told["dt"]: file for file, told in pairs if "dt" in told}
        if len(rates) > 1:
            parts = ", ".join(f"{dt:g} s in {file}" for dt, file in rates.items())
            log.warning("data=%s: time steps differ: %s", self.path, parts)

    def sizes(self) -> Sizes:
        """See Layout."""
        return total(self.each)

    def read(self, storage: str) -> Recording:
        """See Layout."""
        told: list[dict[str, Any]] = []
        parts = (part for one in self.recordings(storage, told) for part in episodes(one))
        recording = stack(self.path, parts, self.sizes(), storage, {})
        return recording._replace(about=self.whole(told) | recording.about)

    def recordings(self, storage: str, told: list[dict[str, Any]]) -> Iterator[Recording]:
        """The recordings, one in memory at a time; what they tell goes to `told`."""
        for file in self.files:
            with self.opened(file, self.reading) as layout:
                recording = layout.read(storage)
            short, inner = Path(file).name, recording.about.get("demos")
            names = [f"{short} {name}" for name in inner or ()] or [short] * len(recording.ends)
            broken = [
                fault._replace(text=f"{fault.text} (in {short})")
                for fault in recording.about.get("broken", ())
            ]
            told.append(recording.about | {"demos": names, "broken": broken})
            yield recording

    def about(self) -> dict[str, Any]:
        """See Layout."""
        return self.whole(self.told)

    def whole(self, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What all files tell: of each thing the first that is told, of lists all members."""
        whole: dict[str, Any] = {}
        for one in told:
            whole = one | {key: value for key, value in whole.items() if value is not None}
        for key in ("jumps", "episodes"):  # counted in one file
            whole.pop(key, None)
        kinds = list(dict.fromkeys(one["format"] for one in told))
        whole |= {"format": f"{len(self.files)} files of {', '.join(kinds)}", "path": self.path}
        for key in ("left_out", "unread", "remarks", "broken", "demos"):
            members = [member for one in told for member in one.get(key, ())]
            members = members if key == "demos" else list(dict.fromkeys(members))
            whole |= {key: members} if members else {}
        return whole


def spelled(path: str | Sequence[str]) -> str:
    """One file as it is, several as the command line lists them."""
    return path if isinstance(path, str) else f"[{','.join(path)}]"
