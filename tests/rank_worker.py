"""What one of two ranks does in the tests of `test_ranks.py`; torchrun starts it.

`rank_worker.py FOLDER SCENE ...`: scenes in turn, in one pair of processes; rank r leaves what they
returned in FOLDER/r.json. FOLDER holds data.npz and states.json.
"""

import contextlib
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from shipped import needs, small

from rheo import ranks
from rheo.algos.gae import tells
from rheo.algos.onpolicy import OnPolicy
from rheo.envs.batch import Rollout
from rheo.errors import EnvError
from rheo.scripts import train as training
from rheo.scripts.assemble import assemble
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.store.state import capture, divided
from rheo.scripts.together import digests, joined

PERIODS = ["steps=240", "log_every=20", "eval_every=120", "save_every=60", "episodes=2"]
DATA = "data.npz"
STATES = "states.json"  # what `states` assembles: a configuration of every algorithm
VALUES = (torch.tensor([1.0, 5.0, 2.0]), torch.tensor([4.0, -3.0, 8.0, 8.0, 0.5]))  # by rank
LOOPS: list[Any] = []  # the one of this rank
CHUNKS = ["env.execute=2", "horizon=2"]  # an episode that ends in one makes ranks differ in frames


def words(algo: str, name: str, *more: str) -> list[str]:
    """The command of a small run of each rank."""
    return ["train", *needs(algo, DATA), *small(algo), *PERIODS, f"name={name}", *more]


def call(argv: list[str]) -> tuple[int, str]:
    """Exit status of a command in this rank, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(argv)
        except SystemExit as error:
            code = int(error.code or 0)
    return code, said.getvalue()


@contextlib.contextmanager
def when(step: int, rank: int, does: Any) -> Any:
    """Inside, a rank does something between two updates, once its run has passed a step."""
    between = training.Loop.between

    def also(self: Any, before: int, now: int, steps: int) -> None:
        between(self, before, now, steps)
        if before < step <= now and ranks.rank() == rank:
            does()

    training.Loop.between = also  # type: ignore[method-assign]
    try:
        yield
    finally:
        training.Loop.between = between  # type: ignore[method-assign]


def apart(some: Iterable[Any], others: Iterable[Any]) -> Iterator[float]:
    """How far each of some tensors lies from its counterpart."""
    return (float((a - b).abs().max()) for a, b in zip(some, others, strict=True))


# ---- scenes --------------------------------------------------------------------------------------


def agreed() -> dict[str, Any]:
    """What ranks with unlike numbers agree on: 3 values on rank 0, 5 on rank 1, and so on."""
    ranks.take(ranks.asked())
    ranks.join(cuda=False)
    number, none = ranks.rank(), torch.zeros(4, 2)
    values = VALUES[number].double()
    one, true = torch.ones(4, 2), torch.ones(4, 2, dtype=torch.bool)
    paid = none.clone()
    paid[1, 1] = float(number)
    told = {
        "one pays": tells(paid, 0.9 * one, true.long(), true),
        "unlike": tells(one * (1 + number), 0.9 * one, true.long(), true),
        "alike": tells(one, 0.9 * one, true.long(), true),
        "one ends": tells(one, 0.9 * one * (one.cumsum(0) < 4 + number), true.long(), true),
        "one broke": tells(paid, 0.9 * one, true.long(), true & (number == 1)),
    }
    learner: Any = SimpleNamespace(
        samples=2, generator=torch.Generator(), learn=SimpleNamespace(minibatch=4, kl_stop=0.1)
    )
    parts = [part.tolist() for part in OnPolicy.minibatches(learner, 5 - 2 * number)]
    found = {
        "moments": [float(each) for each in ranks.moments(values)],
        "spread": [float(each) for each in ranks.spread(values)],
        "mean": [each.tolist() for each in ranks.mean(values[:2], values[2])],
        "most": ranks.most(values[:2]).tolist(),
        "counts": [ranks.total(3 + number), ranks.largest(3 - number)],
        "tells": told,
        "leapt": OnPolicy.leapt(learner, torch.tensor(0.3 * number)),
        "parts": parts,
        "row": joined({"env/episodes": 1.0 + number, "env/return": 3.0 * number, "q": number}),
    }
    ranks.leave()
    return found


def unknown(*given: Any) -> int:
    """A system call that the kernel does not know."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def met() -> dict[str, Any]:
    """Sums of memory that ranks share, of gloo, and where one rank has no such memory."""
    ranks.take(ranks.asked())
    ranks.join(cuda=False)
    generator = torch.Generator().manual_seed(ranks.rank())
    mine, table = torch.randn(1_500_000, generator=generator), ranks._table
    sums = [ranks._summed(mine.clone())]
    ranks._table = None
    sums.append(ranks._summed(mine.clone()))
    ranks._table = table
    ranks.leave()
    ranks.take(ranks.asked())
    opens = os.pidfd_open
    if ranks.rank() == 1:
        os.pidfd_open = unknown  # as kernels before 5.3
    ranks.join(cuda=False)
    os.pidfd_open = opens
    found = {
        "shared": [table is not None, ranks._table is not None],
        "equal": torch.equal(*sums),
        "digest": digests({"sum": sums[0]}),
        "total": ranks.total(3 + ranks.rank()),
    }
    ranks.leave()
    return found


def states() -> dict[str, Any]:
    """Every algorithm after a few updates: what is alike and what is each rank's own."""
    found = {}
    ranks.take(ranks.asked())
    ranks.join(cuda=False)
    for algo, tree in json.loads(Path(STATES).read_text()).items():
        experiment = assemble(tree)
        for _ in range(3 if isinstance(experiment.algo, OnPolicy) else 6):
            experiment.algo.update(experiment.source.next(experiment.algo.act))
        common, own = divided(experiment.algo, capture(experiment.algo))
        found[algo] = {
            "common": digests(common), "own": digests(own), "progress": experiment.source.progress,
        }  # fmt: skip
    ranks.leave()
    return found


def joined_batch() -> dict[str, Any]:
    """PPO by two ranks, and by one process with the rollouts of both; largest differences."""
    ranks.take(ranks.asked())
    ranks.join(cuda=False)
    more = ["algo.learn.minibatch=4096", "algo.learn.epochs=3", "algo.learn.policy_lr=1e-3"]
    cfg = compose([*words("ppo", "x", *more)[1:]])
    two = assemble(cfg)
    whole: list[Rollout] = []
    for _ in range(3):
        rollout = two.source.next(two.algo.act)
        parts = ranks.gathered(rollout)
        if parts:
            columns = (torch.cat(pair, 1) for pair in zip(*(p[:-1] for p in parts), strict=True))
            kept = {k: torch.cat([p.kept[k] for p in parts], 1) for k in rollout.kept}
            whole.append(Rollout._make([*columns, kept]))
        two.algo.update(rollout)
    place = ranks.Place(ranks.rank(), 2, ranks.rank(), 2)
    found = {}
    if ranks.leads():
        ranks.take(ranks.ALONE)
        one = assemble(cfg)
        start = [each.detach().clone() for each in one.algo.policy.parameters()]
        for rollout in whole:
            one.algo.update(rollout)
        gaps = [*apart(two.algo.policy.parameters(), one.algo.policy.parameters())]
        gaps += apart(two.algo.value.parameters(), one.algo.value.parameters())
        moved = min(apart(start, one.algo.policy.parameters()))
        scales = [float(each.algo.scale.std) for each in (two, one)]
        frames = [two.source.progress, one.algo.frames, two.algo.frames]
        found = {"gap": max(gaps), "moved": moved, "scales": scales, "frames": frames}
    ranks.take(place)
    ranks.leave()
    return found


def runs() -> dict[str, Any]:
    """Runs that never stopped beside some that rank 1 was asked to stop, and went on."""
    told = {}
    for algo in ("sac", "ppo"):
        more = CHUNKS if algo == "sac" else []
        told[f"{algo}, straight"] = call(words(algo, f"{algo}-straight", *more))
        with when(73, 1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            told[f"{algo}, stopped"] = call(words(algo, f"{algo}-stopped", *more))
        told[f"{algo}, resumed"] = call(["resume", f"{algo}-stopped"])
    told["again"] = call(words("sac", "sac-straight"))
    told["bc"] = call(words("bc", "bc", "env=none"))
    return told


def fault() -> dict[str, Any]:
    """An environment that fails on rank 1, and weights that are no longer alike."""

    def breaks() -> None:
        raise EnvError("the simulator broke\nand more of it")

    with when(73, 1, breaks):
        told = {"broke": call(words("sac", "broke", *CHUNKS))}
    told["mended"] = call(["resume", "broke"])
    with when(50, 1, drift):
        told["drifted"] = call(words("sac", "drifted"))
    return told


def drift() -> None:
    """Moves a weight of this rank alone."""
    with torch.no_grad():
        next(iter(LOOPS[0].algo.policy.parameters())).add_(1e-6)


def killed() -> int:
    """Rank 1 dies without a word."""
    with when(73, 1, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        return main(words("sac", "killed", *CHUNKS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    begin = training.Loop.__init__

    def noted(self: Any, *args: Any) -> None:
        begin(self, *args)
        LOOPS[:] = [self]

    training.Loop.__init__ = noted  # type: ignore[method-assign]
    if sys.argv[2] == "killed":
        sys.exit(killed())
    results = {name: globals()[name]() for name in sys.argv[2:]}
    Path(f"{os.environ['RANK']}.json").write_text(json.dumps(results, indent=1))
