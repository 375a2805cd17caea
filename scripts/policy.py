"""A run's policy in other people's loops: what `rheo.load` gives."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rheo.algos.contract import Algorithm
from rheo.algos.resip import ResiP
from rheo.envs.manipulation.robosuite_tasks import OTHER_OBJECT, numbers
from rheo.envs.noise import TILE
from rheo.envs.pixels import pixels
from rheo.envs.rollout import TILE_GPU
from rheo.errors import RheoError

from .assemble import executed, meaning, prepare, revived
from .config.top import EVAL_SEED, inside
from .episodes import Episodes
from .evaluate import evaluate_folder
from .fast import fast_deploy
from .sight import frozen
from .store.run import Run

log = logging.getLogger("rheo")


class Policy(Episodes):
    """The deployed policy of a run's last checkpoint: observations in, actions out.

    It keeps what an episode needs: the history of observations, the rest of a plan, and the noise.
    N episodes run side by side, as many as the first observations have rows (`Episodes`).

    run: its name or folder. execute: steps of a plan that are executed; None: as the run does.
    seed: of the policy's noise. flags: the --config-dir words of a run that needs them.

    obs_parts: the named parts of an observation with their widths, in order. action_low and
    action_high [Da]: bounds of an action, in the environment's units.

    Raises RheoError for a run without a checkpoint, or with an algorithm of one's own that acts
    inside its environment.
    """

    def __init__(
        self,
        run: str,
        *,
        execute: int | None = None,
        seed: int = EVAL_SEED,
        flags: Sequence[str] = (),
    ) -> None:
        opened = Run.open(run, flags)
        config = opened.config
        prepare(config)
        self.algo, sizes = revived(opened)
        self.corrects = isinstance(self.algo, ResiP)
        if type(self.algo).wrap is not Algorithm.wrap and not self.corrects:
            raise RheoError(
                f"{opened.path}: a {type(self.algo).__name__} run acts inside its environment "
                f"({self.algo.beyond}); roll it out with `rheo eval`"
            )
        self.run, self.origin, self.seed = opened, str(opened.path), seed
        device = self.algo.generator.device
        self.tile = TILE if device.type == "cpu" else TILE_GPU
        self.deploy = fast_deploy(self.algo, config["fast"], TILE)
        self.steps = int(inside(config, "env.obs_steps") or inside(config, "source.obs_steps") or 1)
        width, self.images = sizes.obs_dim // self.steps, sizes.images
        self.eye = self.algo.policy.obs_norm if frozen(config) else None
        if self.eye is not None:  # which is shown features
            width = self.eye.state_dim + pixels(self.images)
        self.obs_parts, self.action_low, self.action_high = meaning(opened, width, sizes.action_dim)
        self.horizon, self.own = config["horizon"], executed(config)
        self.execute = self.own if execute is None else execute
        if not 1 <= self.execute <= self.horizon:
            raise RheoError(
                f"execute={execute}: plans have {self.horizon} steps; give 1 to {self.horizon}"
            )
        # steps of a plan that were learned, and can be had at once
        self.usable = 1 if self.corrects else self.algo.executed or self.horizon
        warn_of_older(opened)
        self._told = False
        self._begin(0)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Any, Any]:
        """`act` as Stable-Baselines3's evaluate_policy calls it -> (action, state).

        episode_start [N]: rows whose episode begins here. state is handed back: the policy keeps
        its own. deterministic is not used: a run acts as it was deployed, its noise is seeded.
        """
        if deterministic and not self._told:
            log.warning("%s: deterministic=True changes nothing: acts as deployed", self.run.path)
            self._told = True
        if episode_start is not None and len(self.begun):
            self.reset(np.asarray(episode_start, bool).reshape(-1))
        return self.act(observation), state

    def evaluate(self, episodes: int = 100, seed: int = EVAL_SEED) -> dict[str, Any]:
        """Figures of so many episodes in the run's own environment, as `rheo eval` has them.

        Returns, lengths and success with 95 % intervals; the episodes are written to its folder.
        """
        changed = [f"seed={seed}"] if seed != EVAL_SEED else []
        if self.execute != self.own and self.run.config["env"]:
            self.run.config["env"]["execute"] = self.execute
            changed.append(f"env.execute={self.execute}")
        return evaluate_folder(self.run, episodes, changed=changed, seed=seed)


def warn_of_older(run: Run) -> None:
    """Says so where a policy learned from robosuite's observations of before 1.5."""
    args = inside(run.config, "env.options.env_args")
    version = args.get("env_version") if isinstance(args, Mapping) else None
    if version is not None and numbers(version) < OTHER_OBJECT:
        text = "%s: trained on observations of robosuite %s, whose `object` is not that of 1.5: "
        log.warning(text + "give it those of a robosuite before 1.5", run.path, version)
