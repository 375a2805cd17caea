"""The loop of every stage: batches from a source into an algorithm, and what is due between."""

import logging
import math
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from time import monotonic
from typing import Any

import torch

from rheo import ranks
from rheo.envs.acting import Acting, placed
from rheo.envs.rollout import as_rows
from rheo.envs.sources import Rollouts
from rheo.errors import MACHINE, REQUEUE, EnvError, Halted, RheoError

from .assemble import Experiment, entered, make_eval_env
from .breaks import Broke, Finding
from .config.top import EVAL_SEED
from .display import Display, Timer, time_frozen_base
from .ending import LOWER, Breaking, tell
from .evaluate import episodes_of, known_references, score, titled
from .fast import exploring, fast, one_thread
from .sight import encode_data
from .start import start_from
from .stopping import Stop, diagnosis
from .store.fields import fitting
from .store.run import Run
from .store.services import FINISHED, STOPPED
from .store.state import capture, not_finite, restore
from .together import collected, joined, refuse_unequal
from .trial import Trial, refuse_unfitted, rehearse, tell_shift
from .worlds import refuse_other_order

log = logging.getLogger("rheo")
SOON = 1.0  # minute until the first save
PROBED = 8  # recorded observations at which a frozen base is tried


class Loop:
    """Batches from a source into an algorithm, with logs, evaluations and checkpoints between.

    Every period is counted in `source.progress` (environment frames, or updates on a dataset),
    and is due when a multiple of it was crossed, so that a resumed run does the same as one
    that never stopped.
    """

    def __init__(self, run: Run, experiment: Experiment, stop: Stop) -> None:
        self.run, self.cfg, self.stop = run, run.config, stop
        self.algo, self.source, self.sizes, self.device = experiment
        recorded = getattr(self.source, "dataset", self.source)
        if hasattr(recorded, "about"):
            run.note_data(recorded.about, recorded.digest)
        judged = ranks.leads() and self.algo.policy is not None
        env = make_eval_env(self.cfg, self.cfg["episodes"]) if judged else None
        self.eval_env = None if env is None else entered(self.algo, env, EVAL_SEED)
        numbers, on_policy = self.cfg["precision"], isinstance(self.source, Rollouts)
        update = fast(self.algo, self.cfg["fast"], numbers)
        self.explore = exploring(self.algo, numbers, on_policy)
        self.breaking = Breaking(run, self.algo, self.source, self.sizes, update)
        self.acting = one_thread() if on_policy else nullcontext()
        self.timer = Timer()
        time_frozen_base(self.algo, self.timer)
        self.heed()
        self.latest: dict[str, Any] = {}  # metrics of the last update that gave them
        self.fresh = True  # an evaluation is still to come: the one before the first update
        self.since: int | None = None  # where the step began that a signal cut, until it is done
        self.doubtful = False  # a state was restored, and nothing was logged since
        self.saved = -1
        stop.watch(self)
        self.tried = monotonic()  # when it was last saved, or the loop was made

    def close(self) -> None:
        """Ends the environments, and with them the processes that host some."""
        acting = getattr(self.source, "replay", self.source)
        for env in (getattr(acting, "env", None), self.eval_env):
            if env is not None:
                env.close()

    def begin(self) -> None:
        """What comes before the first step. Raises RheoError for what cannot be trained."""
        if self.cfg["init"] is not None:
            self.goes_with(start_from(self.algo, self.cfg))
        encode_data(self.algo, self.source)
        refuse_unfitted(self.algo)
        if self.cfg["init"] is not None:
            tell_shift(self.algo, self.source)
        self.try_out()
        rehearse(self.algo, self.source, self.sizes)
        refuse_unequal(self.algo, 0)

    def goes_with(self, base: Run) -> None:
        """Keeps what the numbers of a base mean, where no data of this run's own tell it.

        Raises RheoError where the environment has parts of the base's observations elsewhere.
        """
        if self.eval_env is not None:
            refuse_other_order(self.eval_env, base)
        if not hasattr(getattr(self.source, "dataset", self.source), "about"):
            self.run.note_meaning(base.meaning())

    def restore(self, tree: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        restore(self.algo, tree["algo"])
        self.source.load_state_dict(tree["source"])
        self.latest, self.fresh = tree["loop"]["latest"], tree["loop"]["fresh"]
        self.breaking.restore(tree["loop"])
        self.since = tree["loop"].get("since")
        self.doubtful = True
        self.saved = self.source.progress
        if self.saved != self.run.step:
            raise ValueError(f"source is at step {self.saved}, the checkpoint at {self.run.step}")

    def try_out(self) -> None:
        """One decision in the environments of the evaluation, which every evaluation resets.

        Before it, what the algorithm tries out itself. So what does not keep gymnasium's contract,
        and a frozen base that cannot be steered at what is observed there (or in the data), is
        refused before any work. Raises EnvError, RheoError.
        """
        if not ranks.leads() or self.algo.policy is None:
            return
        if self.eval_env is not None:
            obs = self.eval_env.reset(EVAL_SEED)
        elif hasattr(self.source, "beginning"):
            obs = self.source.beginning(PROBED)
        else:
            obs = torch.zeros((1, self.sizes.obs_dim))
        at, episodes = placed(obs, self.device), self.cfg["episodes"]
        trial = Trial(at, self.eval_env, episodes, self.stop.__bool__)
        try:
            self.latest |= self.algo.before_training(trial)
            generator = torch.Generator(self.device).manual_seed(EVAL_SEED)
            action = self.algo.deploy(trial.obs, generator)
        except ValueError as error:
            raise RheoError(str(error)) from error
        if self.eval_env is not None:
            self.eval_env.step(action)

    def finish(self) -> int:
        """Trains until the run's length or until asked to stop; returns the exit status."""
        total, start = self.cfg["steps"], self.source.progress
        where = nullcontext() if ranks.leads() else open(os.devnull, "w")  # noqa: SIM115
        title = self.run.path.name
        with where as stream, Display(total, start=start, title=title, stream=stream) as display:
            self.display = display
            try:
                self.go()
            except Broke as error:
                raise self.broke(str(error), finding=error.finding) from error
            except FloatingPointError as error:  # the guard before the physics
                raise self.broke(str(error), finding=self.breaking.behind(self.source)) from error
            except EnvError as error:
                raise self.failed(error) from error
            except ranks.Lost as error:
                error.kept = f"; {self.kept()}; go on with: {self.run.resume_command()}"
                raise
        if ranks.largest(int(self.unfinished() or self.fresh)):
            self.run.end = STOPPED
            if ranks.leads():
                print(f"{self.stop.why()} and saved; go on with: {self.run.resume_command()}")
            return REQUEUE
        self.run.end = FINISHED
        if ranks.leads():
            tell(self.run)
        return 0

    def go(self) -> None:
        """The loop; the run is saved at its end."""
        steps, source, stop = self.cfg["steps"], self.source, self.stop
        if self.fresh and not stop.agreed():
            self.evaluate(source.progress)
            if not self.unfinished() and not ranks.largest(int(self.fresh)):
                self.save(source.progress)  # with nothing left to do
        with suppress(Halted):
            while self.unfinished() and not stop.agreed():
                since = self.since = source.progress if self.since is None else self.since
                with self.doubting():
                    self.move()
                self.display.tick(source.progress)
                self.since = None
                self.between(since, source.progress, steps)
        if self.saved != source.progress:
            self.save(source.progress)
        if self.saved != source.progress:
            raise RheoError(
                f"{self.run.path}: the end at step {source.progress} could not be saved; free some "
                f"space and go on from the last good checkpoint: {self.run.resume_command()}",
                MACHINE,
            )

    def move(self) -> None:
        """The next batch, and what is learned from it."""
        with self.timer("env"), self.acting:
            batch = self.source.next(self.act)
        with self.timer("learn"):
            self.latest |= self.breaking.learn(batch, self.source.progress)

    def doubting(self) -> AbstractContextManager[None]:
        """Around what may fail since the state of a checkpoint was none of this run."""
        return fitting(self.run.loaded) if self.doubtful else nullcontext()

    def heed(self) -> None:
        """Lets a wish to stop be heard between the decisions of a source.

        Several ranks have to agree on it, which those of a rollout do between rollouts only: there
        every decision would wait for the slowest.
        """
        acting = getattr(self.source, "replay", self.source)
        if isinstance(acting, Acting) and (ranks.size() == 1 or not isinstance(acting, Rollouts)):
            acting.halt = self.stop.agreed

    def unfinished(self) -> bool:
        """Whether there is something to do before the run's end."""
        return self.source.progress < self.cfg["steps"] or self.since is not None

    def between(self, before: int, now: int, steps: int) -> None:
        """Whatever is due between two updates."""
        end = now >= steps
        if end or due(before, now, self.cfg["log_every"]):
            with self.doubting():
                self.log(now)
            self.doubtful = False
        if end or due(before, now, self.cfg["eval_every"]):
            self.evaluate(now)
        if end or due(before, now, self.cfg["save_every"]) or self.is_late(before, now):
            self.save(now)

    def is_late(self, before: int, now: int) -> bool:
        """Whether `save_minutes` are over since the last save, SOON for the first.

        Several ranks ask the first one, where they log: they come by there together.
        """
        minutes = self.cfg["save_minutes"]
        if minutes is None or ranks.size() > 1 and not due(before, now, self.cfg["log_every"]):
            return False
        wait = minutes if self.saved >= 0 else min(minutes, SOON)
        return ranks.largest(int(ranks.leads() and monotonic() - self.tried > 60 * wait)) > 0

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """Exploring action; its time counts as inference."""
        with self.timer("act"):
            return self.explore(obs)

    def log(self, step: int) -> None:
        """One row of training metrics."""
        shares = self.timer.shares()
        row = self.latest | self.source.metrics() | self.breaking.metrics(self.latest)
        row = joined(row | {f"time/{name}_share": share for name, share in shares.items()})
        if not ranks.leads():
            return
        self.display.update(step, self.record(step, row), shares)
        sick = diagnosis(row, self.cfg.get("limits") or {}, self.cfg["policy"])
        if sick is not None:
            raise self.broke(f"at step {step} {sick}", "")

    def evaluate(self, step: int) -> None:
        """Episodes in the environment, and the loss on held-out data, whichever there is."""
        self.fresh = ranks.leads()  # one that breaks off is still to come when the run goes on
        if not ranks.leads():
            return
        with suppress(Halted):
            self.figure(step)
            self.fresh = False

    def figure(self, step: int) -> None:
        """An evaluation, logged. Raises Halted where a signal breaks it off."""
        figures: dict[str, Any] = {}
        with self.timer("eval"):
            if self.eval_env is not None:
                how = self.cfg["episodes"], self.cfg["fast"]
                rows = episodes_of(self.eval_env, self.algo, *how, halt=self.stop.__bool__)
                used = known_references(self.cfg["env"])
                figures |= titled(score(rows, used), self.eval_env)
                where: dict[str, Any] = {"env": self.eval_env.env.id}
                if used is not None:
                    where["references"] = used._asdict()
                self.run.record_eval(step, as_rows(rows), **where, **figures)
            held = self.source.held_out() if hasattr(self.source, "held_out") else None
            if held is not None:
                generator = torch.Generator(self.device).manual_seed(EVAL_SEED)
                figures |= self.algo.validate(held, generator)
        if figures:
            self.display.update(step, self.record(step, figures))

    def record(self, step: int, row: dict[str, Any]) -> dict[str, float]:
        """Logs a row. Raises RheoError (code 4) when a number in it broke."""
        numbers = self.run.log(step, row)
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise self.broke(f"{name} is {value} at step {step}")
        return numbers

    def save(self, step: int) -> None:
        """A checkpoint of everything; numbers that broke never replace a good one."""
        self.stop.saving = True  # which is waited for
        self.tried = monotonic()
        with self.timer("save"):
            algo = capture(self.algo)
            place = not_finite(algo, "algo")
            if place is not None:
                raise self.broke(f"{place} is not finite at step {step}")
            tree = {
                "algo": algo,
                "source": self.source.state_dict(),
                "sizes": self.sizes._asdict(),
                "loop": {"latest": self.latest, "fresh": self.fresh, "since": self.since},
            }
            tree["loop"] |= self.breaking.state()
            saved = self.run.save(step, collected(self.algo, tree)) is not None
            self.saved = step if ranks.largest(int(saved)) else self.saved
        self.stop.saving = False

    def broke(self, what: str, remedy: str = LOWER, finding: Finding | None = None) -> RheoError:
        """The end of a run whose numbers broke."""
        return self.breaking.ended(what, self.source.progress, self.saved, remedy, finding)

    def failed(self, error: EnvError) -> Exception:
        """The end of a run whose environment failed; what was learnt until then is saved.

        Before any work that is the environment's own message.
        """
        step = self.source.progress
        if step == 0 and self.saved < 0:
            return error
        if self.saved != step and ranks.size() == 1:  # the others are elsewhere in theirs
            self.save(step)
        return RheoError(
            f"{error}\n{self.run.path}: {self.kept()}; mend the environment and go on with: "
            f"{self.run.resume_command()}",
            MACHINE,
        )

    def kept(self) -> str:
        """What is left of a run that breaks off."""
        return f"saved at step {self.saved}" if self.saved >= 0 else "it could not be saved"


def due(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]."""
    return now // every > before // every
