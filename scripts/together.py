"""A run of several ranks: how they come together and part, and what one folder keeps of all.

The first rank owns the run's folder, its display and its evaluations. The others have the same
weights and experience of their own, which lies in the checkpoint beside that of the first.
"""

import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rheo import ranks
from rheo.envs.rows import Rows
from rheo.errors import MACHINE, RheoError

from .assemble import device_of
from .config.compose import load
from .store.checkpoint import dump
from .store.journal import floats
from .store.run import Run
from .store.state import capture, divided, united
from .store.tree import pack
from .store.where import existing, locate

log = logging.getLogger("rheo")
HEARD = 3.0  # seconds in which the others say that they have lost somebody too
MEANS = ("env/return", "env/length", "env/success")  # of episodes; other counts of env/ add up


class Shadow(Run):
    """The run of a rank that is not the first: it reads what the first one writes."""

    @classmethod
    def create(cls, name: str, config: dict[str, Any]) -> "Shadow":
        """The run that the first rank makes."""
        return cls(locate(name), config, None)

    @classmethod
    def open(cls, name: str, argv: Sequence[str] = (), *, write: bool = False) -> "Shadow":
        """The run that the first rank opens."""
        path = existing(name)
        return cls(path, load(path, argv, to_train=write), None)

    def note_meaning(self, told: dict[str, Any]) -> None:
        """Writes nothing."""

    def save(self, step: int, tree: dict[str, Any]) -> Path | None:
        """Writes nothing."""

    def go_on(self, saved: bool) -> None:
        """Removes nothing."""


def run_kind() -> type[Run]:
    """What this rank knows of its run."""
    return Run if ranks.leads() else Shadow


# ---- coming together and parting -----------------------------------------------------------------


@contextmanager
def together(device: Callable[[], str]) -> Iterator[None]:
    """Inside, this process is the rank that torchrun says; alone, nothing.

    device: asks for the configured one. When a rank ends by an error the others end too, with
    status 3 and a line that says which and why.
    """
    place = ranks.asked()
    if place.size == 1:
        yield
        return
    ranks.take(place)
    where = device_of(device())
    if where.type == "cuda":
        torch.cuda.set_device(where)
    ranks.join(where.type == "cuda")
    try:
        yield
        ranks.total(0)  # whoever ends first is followed by a SIGTERM of torchrun to the others
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        told = last_word(error)
        if told is error:
            raise
        raise told from error
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as above: what is left is to end
        ranks.leave()


def last_word(error: BaseException) -> BaseException:
    """What ends this rank: its own error, told to the others, or what it has heard of one."""
    if not isinstance(error, ranks.Lost):
        kind = "" if isinstance(error, RheoError) else f"{type(error).__name__}: "
        code = error.code if isinstance(error, RheoError) and ranks.leads() else None
        ranks.leave_word("end", json.dumps({"text": f"{kind}{error}", "code": code}))
        if isinstance(error, RheoError) and not ranks.leads():
            return RheoError(f"rank {ranks.rank()}: {error}", error.code)
        return error
    try:
        ranks.leave_word("lost", str(error))
        spoken, lost = overheard()
    except RuntimeError:  # the place where words are left is gone too
        return RheoError(f"the other ranks are gone: {error}{error.kept}", MACHINE)
    first = next(iter(spoken.values()), None)
    if first is not None and first["code"] is not None:  # the first rank has said it
        return SystemExit(first["code"])
    if ranks.rank() != min(lost):  # another one says it
        return SystemExit(MACHINE)
    silent = [each for each in range(ranks.size()) if each not in spoken and each not in lost]
    lines = {each: word["text"].partition("\n")[0] for each, word in spoken.items()}
    said = [f"rank {each} stopped: {line}" for each, line in lines.items()]
    said += [f"rank {each} is gone without a word (killed?)" for each in silent]
    what = "; ".join(said) or f"the ranks lost each other: {error}"
    return RheoError(f"{what}; all {ranks.size()} ranks stop{error.kept}", MACHINE)


def overheard() -> tuple[dict[int, Any], dict[int, str]]:
    """Who has ended with which words, and who has lost somebody; waits until all have spoken."""
    until = time.monotonic() + HEARD
    while True:
        spoken = {each: json.loads(word) for each, word in ranks.words("end").items()}
        lost = ranks.words("lost")
        if len(spoken) + len(lost) == ranks.size() or time.monotonic() > until:
            return spoken, lost
        time.sleep(0.05)


def announce(config: Mapping[str, Any]) -> None:
    """Says at the start what each rank does, and what all do together.

    Each waits here until the first one has the run's folder.
    """
    if ranks.total(1) == 1:
        return
    source, count = config.get("source") or {}, ranks.size()
    replay = source.get("replay") or source
    learn = (config["algo"].get("learn") or {}).get("minibatch")
    sizes = {
        "environments": (config.get("env") or {}).get("num_envs") if env_of(config) else None,
        "rows a batch": source.get("batch_size"),
        "samples a minibatch": learn,
    }
    told = [f"{n} {name} each, {n * count} in all" for name, n in sizes.items() if n is not None]
    steps = "updates, one of all ranks each" if not env_of(config) else "the frames of all"
    ratio = replay.get("update_ratio")
    more = f"; source.update_ratio={ratio:g} is per frame of all" if ratio is not None else ""
    log.info("%d ranks: %s; steps count %s%s", count, "; ".join(told), steps, more)


def env_of(config: Mapping[str, Any]) -> bool:
    """Whether a run acts, and counts frames."""
    source = config.get("source") or {}
    return not source.get("_target_", "").startswith("rheo.envs.datasets.") or "replay" in source


# ---- what one folder keeps of all ----------------------------------------------------------------


def joined(row: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of all ranks as one row, for the first: episodes together, means of all else."""
    if ranks.size() == 1:
        return dict(row)
    rows = ranks.gathered(floats(row))
    found = {}
    for name in dict.fromkeys(name for each in rows for name in each):
        each = [one for one in rows if name in one]
        if name.startswith("env/") and name not in MEANS:
            found[name] = sum(one[name] for one in each)
            continue
        weights = [one["env/episodes"] if name in MEANS else 1.0 for one in each]
        pairs = zip(each, weights, strict=True)
        found[name] = sum(one[name] * weight for one, weight in pairs) / sum(weights)
    return found


def collected(algo: Any, tree: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with what the other ranks have of their own, `ranks`; complete on the first.

    Raises RheoError where ranks differ in what they should have alike.
    """
    if ranks.size() == 1:
        return tree
    common, own = divided(algo, tree["algo"])
    refuse_drift(digests(common))
    mine = {**tree, "algo": own}
    others = ranks.gathered(None if ranks.leads() else on_host(mine))[1:]
    return {**tree, "ranks": {str(rank): each for rank, each in enumerate(others, start=1)}}


def own_part(tree: dict[str, Any], run: Run) -> dict[str, Any]:
    """This rank's view of a checkpoint. Raises RheoError for one of another number of ranks."""
    parts = tree.get("ranks", {})
    count = 1 + len(parts)
    if count != ranks.size():
        path = run.path
        how = ranks.launched(f"rheo resume {path}", count)
        raise RheoError(
            f"{path} was trained by {plural(count)} and this is {plural(ranks.size())}, whose "
            f"experience would be another; go on with: {how}, or begin a new run from it with "
            f"init={path}"
        )
    mine = parts.get(str(ranks.rank()))
    if mine is None:
        return tree
    return {**tree, **mine, "algo": united(tree["algo"], mine["algo"])}


def refuse_drift(mine: Mapping[str, Any]) -> None:
    """Raises RheoError on the first rank where another one's facts are not the same."""
    rows = ranks.gathered(dict(mine))
    for rank, other in enumerate(rows[1:], start=1):
        wrong = [name for name in {**rows[0], **other} if rows[0].get(name) != other.get(name)]
        if wrong:
            raise RheoError(
                f"{', '.join(wrong)} of rank {rank} and of rank 0 are not the same, so this is not "
                "one run; nothing is saved. Every loss has to go through rheo.algos.optim.step, "
                "on processors of one kind, and all ranks have to read the same files",
                MACHINE,
            )


def refuse_unequal(algo: Any, step: int) -> None:
    """Raises RheoError on the first rank unless all begin alike, at the same step."""
    if ranks.size() == 1:
        return
    refuse_drift({"the step": str(step), **digests(divided(algo, capture(algo))[0])})


def digests(common: Mapping[str, Any]) -> dict[str, str]:
    """A hash of every part of an algorithm."""
    return {f"algo.{name}": digest(value) for name, value in common.items()}


def digest(part: Any) -> str:
    """A hash of a state: its numbers and the bytes of its tensors."""
    packed = pack({"part": part})
    found = hashlib.sha256(dump(packed.state))
    for tensor in packed.tensors.get("part", {}).values():
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def on_host(node: Any) -> Any:
    """A state with its tensors in the host's memory: another rank has no use for this one's GPU."""
    if isinstance(node, torch.Tensor):
        found = node.detach().cpu()
        whole = found.untyped_storage().nbytes() == found.nbytes  # what is sent is all of it
        return found if whole else found.clone()
    if isinstance(node, Rows):
        return node.on_host()
    if isinstance(node, Mapping):
        return {key: on_host(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)) and type(node) in (list, tuple):
        return type(node)(on_host(value) for value in node)
    return node


def plural(count: int) -> str:
    """Ranks, counted."""
    return f"{count} ranks" if count > 1 else "one process"
