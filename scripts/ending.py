"""How a run ends: what it came to, and what is said of one whose numbers broke."""

import logging
from pathlib import Path
from typing import Any

from rheo import ranks
from rheo.errors import NUMERICS, RheoError

from . import budget, dumps
from .assemble import run_updates
from .breaks import Broke, Finding, Update, Watch
from .health import Health
from .plot import plot
from .rates import slow
from .store.run import Run

log = logging.getLogger("rheo")
LOWER = ". Try lower learning rates"


class Back(RheoError):
    """A run whose numbers broke, and that goes back to its last checkpoint (`limits.rollback`).

    It goes on from there as if it had been resumed, once, with learning rates of that share.
    """

    def begin(self, run: Run) -> dict[str, Any]:
        """The checkpoint to go on from; says so, here and in run.json."""
        tree, rate = run.load(), slower(run.config)
        assert tree is not None
        log.warning("back to step %d, with learning rates x %g: %s", run.step, rate, self)
        run.told = {"rolled_back": {"why": str(self).partition("\n")[0], "rate": rate}}
        return tree


def slower(config: dict[str, Any]) -> float | None:
    """The factor of the learning rates after a roll-back; None: there is none."""
    return (config.get("limits") or {}).get("rollback")


def skips(config: dict[str, Any]) -> int:
    """How many broken updates may be left out (`limits.skip`).

    Raises RheoError where several ranks would have to undo them together.
    """
    limits = config.get("limits") or {}
    if ranks.size() > 1 and (limits.get("skip") or limits.get("rollback")):
        raise RheoError("limits.skip, limits.rollback: are for one process; leave them out")
    return limits.get("skip") or 0


class Breaking:
    """What is done where an update or an action broke: it is found, dumped and told.

    skipped: updates that were left out. rate: factor of the learning rates since a roll-back.
    """

    def __init__(self, run: Run, algo: Any, source: Any, sizes: Any, update: Update) -> None:
        self.run, self.sizes = run, sizes
        self.updates = run_updates(source, run.config["steps"])
        self.allowed, self.skipped, self.rate = skips(run.config), 0, 1.0
        self.algo, self.watch = algo, Watch(algo, update, careful=self.allowed > 0)
        self.health, self.batch = Health(algo, source), None

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to know of it."""
        return {"skipped": self.skipped, "rate": self.rate, "health": self.health.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint, whose optimisers have its learning rates."""
        self.skipped, self.rate = state.get("skipped", 0), state.get("rate", 1.0)
        self.health.restore(state.get("health"))
        slow(self.algo, self.rate, groups=False)

    def slow_down(self) -> None:
        """The learning rates of a run that has gone back."""
        self.rate = slower(self.run.config) or 1.0
        slow(self.algo, self.rate)

    def learn(self, batch: Any, step: int) -> dict[str, Any]:
        """An update; where it breaks and may be left out (`limits.skip`) none. Raises Broke."""
        self.batch = batch
        kept = "what was saved is kept, and `rheo resume` goes on from it"
        try:
            with budget.told(self.run.config, self.sizes, kept):
                return self.watch(batch)
        except Broke as error:
            if not self.undone(error.finding, step):
                raise
            return {}

    def behind(self, source: Any) -> Finding | None:
        """What broke before an action that is not finite: an update, or acting itself."""
        finding = self.watch.find()
        obs = getattr(getattr(source, "replay", source), "obs", None)
        return dumps.acted(self.algo, obs) if finding is None and obs is not None else finding

    def undone(self, finding: Finding, step: int) -> bool:
        """Whether a broken update, which the watch has undone, is left out; says so."""
        if self.skipped >= self.allowed:
            return False
        self.skipped += 1
        log.warning(
            "at step %d an update broke and is left out (%d of limits.skip=%d)\n%s",
            *(step, self.skipped, self.allowed, self.account(finding, step)),
        )
        return True

    def metrics(self, row: dict[str, Any]) -> dict[str, float]:
        """How many updates were left out, where any may be, and signs that nothing is learned."""
        told = {"updates/skipped": float(self.skipped)} if self.allowed else {}
        return told | self.health.look(self.batch, row)

    def account(self, finding: Finding, step: int) -> str:
        """What broke first, in lines; writes its dump."""
        config = dumps.text_of(self.run.config)
        sizes = {**self.sizes._asdict(), "images": dict(self.sizes.images)}
        about = dumps.Dump(finding.what, step, self.rate, self.updates, sizes, config)
        return dumps.told(finding, dumps.write(self.run.path, finding, about))

    def ended(
        self, what: str, step: int, saved: int, remedy: str, finding: Finding | None
    ) -> RheoError:
        """The end of a run whose numbers broke, or Back. saved: its last checkpoint, -1 without."""
        if finding is None:
            finding = self.watch.find(dumps.past_limit(self.run.config))
        lines = "" if finding is None else "\n" + self.account(finding, step)
        what = f"{what} (step {step}, seed {self.run.config['seed']})"
        kept = "the last checkpoint is kept" if saved >= 0 else "nothing was saved yet"
        if slower(self.run.config) is not None and self.rate == 1.0 and saved >= 0:
            return Back(f"{what}{lines}", NUMERICS)
        return RheoError(f"{what}: training broke and stops here; {kept}{remedy}{lines}", NUMERICS)


def tell(run: Run) -> None:
    """What a finished run came to, and where it lies."""
    picture = curve(run)
    rows = [row for row in run.rows() if row.get("eval/return") is not None]
    if rows:
        best = max(rows, key=lambda row: row["eval/return"])
        print(
            f"last evaluation: return {rows[-1]['eval/return']:.1f}; the best on the way, not "
            f"to be reported: {best['eval/return']:.1f} at step {best['step']}"
        )
    print(f"run {run.path}" + (f", curve {picture}" if picture else ""))


def curve(run: Run) -> Path | None:
    """The picture of the learning curve; a disk that refuses it does not undo the training."""
    try:
        return plot(run.path, run.rows())
    except OSError as error:
        log.warning("%s: no curve drawn: %s", run.path, error)
        return None
