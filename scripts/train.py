"""`rheo train` and `rheo resume`: the one loop for every stage."""

from typing import Any

import torch

from rheo.envs.rollout import as_rows, evaluate, summary
from rheo.envs.scores import normalized_score

from .assemble import EVAL_SEED, Experiment, assemble, capture, make_env, restore
from .config import compose
from .display import Display, Timer
from .errors import NUMERICS, REQUEUE, RheoError
from .fast import fast, medium_is_exact, with_precision
from .plot import plot
from .run import Run
from .signals import Stop, stop_signals


def main(argv: list[str]) -> int:
    """Trains a new run from configuration overrides."""
    config = compose(argv)
    with Run.create(config["name"] or default_name(config), config) as run:
        return train(run, None)


def resume(argv: list[str]) -> int:
    """Continues a run from its last checkpoint."""
    if len(argv) != 1:
        raise RheoError("usage: rheo resume RUN")
    with Run.open(argv[0], write=True) as run:
        return train(run, run.resume())


def default_name(config: Any) -> str:
    """<algo>-<env or data>-s<seed>."""
    algo = config["algo"]["_target_"].rsplit(".", 1)[-1].lower()
    world = config["env"]["id"] or str(config["data"]).rsplit("/", 1)[-1].split(".")[0]
    return f"{algo}-{world.lower()}-s{config['seed']}"


def train(run: Run, tree: dict[str, Any] | None) -> int:
    """Runs the loop from a checkpoint's tree, or from the start; returns the exit status."""
    experiment = assemble(run.config)
    if tree is not None:
        restore(experiment.algo, tree["algo"])
        experiment.source.load_state_dict(tree["source"])
    elif run.config["init"] is not None:
        start_from(experiment.algo, run.config["init"])
    with stop_signals() as stop, Display(
        run.config["steps"], start=experiment.source.progress, title=run.path.name
    ) as display:
        Loop(run, experiment, display).go(stop)
    if stop:
        print(f"stopped by {stop.signal} and saved; go on with: {run.resume_command()}")
        return REQUEUE
    curve = plot(run)
    print(f"run {run.path}" + (f", curve {curve}" if curve else ""))
    return 0


def start_from(algo: Any, name: str) -> None:
    """Loads the deployed policy of another run into this algorithm's policies."""
    tree = Run.open(name).load()
    if tree is None:
        raise RheoError(f"init={name}: that run has no checkpoint yet")
    donor = tree["algo"].get("average", tree["algo"]["policy"])
    for part in ("policy", "average"):
        if hasattr(algo, part):
            try:
                getattr(algo, part).load_state_dict(donor)
            except RuntimeError as error:
                raise RheoError(f"init={name}: its policy does not fit this one: {error}") from error


class Loop:
    """Batches from a source into an algorithm, with logs, evaluations and checkpoints between.

    Every period is counted in `source.progress` (environment frames, or updates on a dataset),
    and is due when a multiple of it was crossed, so that a resumed run does the same as one
    that never stopped.
    """

    def __init__(self, run: Run, experiment: Experiment, display: Display) -> None:
        self.run, self.cfg, self.display = run, run.config, display
        self.algo, self.source, self.device = experiment.algo, experiment.source, experiment.device
        self.sizes = experiment.sizes
        self.update = fast(self.algo, self.cfg["fast"])
        self.timer = Timer()
        self.latest: dict[str, Any] = {}
        episodes = min(self.cfg["episodes"], 64)
        self.eval_env = make_env(self.cfg, episodes)
        self.saved = -1

    def go(self, stop: Stop) -> None:
        """Until the run's length, or until asked to stop; either way the run is saved."""
        steps, source = self.cfg["steps"], self.source
        if source.progress == 0:
            self.evaluate(0)
        while source.progress < steps and not stop:
            before = source.progress
            with self.timer("env"):
                batch = source.next(self.act)
            with self.timer("learn"):
                self.latest |= self.update(batch)
            self.display.tick(source.progress)
            self.between(before, source.progress, steps)
        if self.saved != source.progress:
            self.save(source.progress)

    def between(self, before: int, now: int, steps: int) -> None:
        """Whatever is due between two updates."""
        end = now >= steps
        if end or due(before, now, self.cfg["log_every"]):
            self.log(now)
        if end or due(before, now, self.cfg["eval_every"]):
            self.evaluate(now)
        if end or due(before, now, self.cfg["save_every"]):
            self.save(now)

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        """Exploring action; its time counts as inference."""
        with self.timer("act"):
            return self.algo.act(obs)

    def log(self, step: int) -> None:
        """One row of metrics. Raises RheoError (code 4) when a number broke."""
        shares = self.timer.shares()
        row = self.latest | self.source.metrics()
        row |= {f"time/{name}_share": share for name, share in shares.items()}
        numbers = self.run.log(step, row)
        broken = [name for name, value in numbers.items() if value is None or value != value]
        if broken:
            raise RheoError(
                f"{broken[0]} is not a number at step {step}: training broke and stops here; "
                "the last checkpoint is kept. Try lower learning rates",
                NUMERICS,
            )
        self.display.update(step, numbers, shares)

    def evaluate(self, step: int) -> None:
        """Episodes in the environment, and the loss on held-out data, whichever there is."""
        figures: dict[str, float] = {}
        with self.timer("eval"):
            if self.eval_env is not None:
                rows = evaluate_run(self.eval_env, self.algo, self.cfg["episodes"], self.device)
                figures |= score(self.eval_env.env.id, rows)
                self.run.record_eval(step, as_rows(rows), **figures)
            if hasattr(self.algo, "validate") and len(self.source.held_steps):
                generator = torch.Generator(self.device).manual_seed(EVAL_SEED)
                held = self.algo.validate(self.source.held_out(), generator)
                figures |= {name: float(value) for name, value in held.items()}
        if figures:
            self.display.update(step, self.run.log(step, figures))

    def save(self, step: int) -> None:
        """A checkpoint of everything."""
        with self.timer("save"):
            tree = {
                "algo": capture(self.algo),
                "source": self.source.state_dict(),
                "sizes": self.sizes._asdict(),
            }
            self.run.save(step, tree)
            self.saved = step


def due(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]."""
    return now // every > before // every


def evaluate_run(env: Any, algo: Any, episodes: int, device: torch.device) -> list[Any]:
    """Episodes of the deployed policy from the fixed initial states; same rows every time.

    Large batches use the faster product where it is exact, as training does; one environment
    acts with the default one, which is faster there.
    """
    deploy = algo.deploy
    if env.num_envs >= 8 and device.type == "cpu" and medium_is_exact():
        deploy = with_precision(deploy, "medium")
    return evaluate(env, deploy, episodes, EVAL_SEED, str(device))


def score(env_id: str, rows: list[Any]) -> dict[str, float]:
    """Summary of evaluation episodes, with the normalised score where one is defined."""
    figures = summary(rows)
    normalized = normalized_score(env_id, figures["eval/return"])
    return figures if normalized is None else figures | {"eval/score": normalized}
