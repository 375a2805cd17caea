"""A run's policy for other programs' rollouts: robomimic's protocol, `start_episode` and a call.

policy = RolloutPolicy("runs/lift")
policy.start_episode()
action = policy(observation)        # {"robot0_eef_pos": [3], ..., "object": [10]} -> [7]

Images are uint8 [H, W, 3], or float [3, H, W] in [0, 1] as robomimic hands them on.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rheo.algos.contract import Algorithm
from rheo.envs.data.demos import FLAT
from rheo.envs.manipulation.robosuite_tasks import OTHER_OBJECT, numbers
from rheo.envs.noise import TILE, EpisodeNoise, filled
from rheo.envs.parts import listed_parts, read_parts
from rheo.envs.pixels import pack, pixels
from rheo.envs.rollout import TILE_GPU
from rheo.errors import RheoError, nearest

from .assemble import executed, make_env, prepare, revived
from .config.top import EVAL_SEED, inside
from .fast import fast_deploy
from .sight import frozen
from .store.run import Run

log = logging.getLogger("rheo")


class RolloutPolicy:
    """The deployed policy of a run's last checkpoint, one environment step at a time.

    It keeps the history of observations and the rest of a plan, and gives actions in the units of
    the environment. With the seed of an evaluation its episodes are those of that evaluation's
    first environment, bit for bit (robomimic's RolloutPolicy, arXiv:2108.03298, is called so too).

    run: its name or folder. execute: steps of a plan that are executed; None: as the run does.
    seed: of the policy's noise. flags: the --config-dir words of a run that needs them.

    Raises RheoError for a run without a checkpoint, or whose policy acts inside its environment.
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
        if type(self.algo).wrap is not Algorithm.wrap:
            raise RheoError(
                f"{opened.path}: a {type(self.algo).__name__} run acts inside its environment "
                f"({self.algo.beyond}); roll it out with `rheo eval`"
            )
        device = self.algo.generator.device
        tile = TILE if device.type == "cpu" else TILE_GPU
        self.deploy = fast_deploy(self.algo, config["fast"], TILE)
        self.steps = int(inside(config, "env.obs_steps") or inside(config, "source.obs_steps") or 1)
        width, self.images = sizes.obs_dim // self.steps, sizes.images
        self.eye = self.algo.policy.obs_norm if frozen(config) else None
        if self.eye is not None:  # which is shown features
            width = self.eye.state_dim + pixels(self.images)
        self.parts, self.half, self.centre = meaning(opened, width)
        longest = config["horizon"]
        self.execute = executed(config) if execute is None else execute
        if not 1 <= self.execute <= longest:
            raise RheoError(f"execute={execute}: plans have {longest} steps; give 1 to {longest}")
        warn_of_older(opened)
        self.noise = EpisodeNoise(seed, 1, str(device))
        self.noise.rows = filled(np.arange(1), tile)
        self.history: deque[NDArray] = deque(maxlen=self.steps)
        self.queue: deque[NDArray] = deque()
        self.begun = False

    def start_episode(self) -> None:
        """Forgets the episode before."""
        if self.begun:
            self.noise.begin(np.ones(1, bool))
            self.algo.ended(torch.ones(len(self.noise.rows), dtype=torch.bool))
        self.history.clear()
        self.queue.clear()
        self.begun = False

    def __call__(self, ob: Mapping[str, Any], goal: None = None) -> NDArray:
        """The action [Da] for an observation by its parts' names; what else is in it is not read.

        Raises ValueError for a part that is missing or of another size, and for a goal.
        """
        if goal is not None:
            raise ValueError("this policy takes no goal: put it among the observations it reads")
        now = self.flat(ob)
        if not self.history:
            self.history.extend([now] * self.steps)
        else:
            self.history.append(now)
        self.begun = True
        if not self.queue:
            rows = torch.from_numpy(np.stack([np.concatenate(self.history)]))
            if self.eye is not None:
                with torch.no_grad():
                    rows = self.eye.encode(rows.to(self.algo.generator.device))
            rows = rows.expand(len(self.noise.rows), -1).to(self.algo.generator.device)
            plan = self.deploy(rows.contiguous(), self.noise)[0, : self.execute]
            self.queue.extend(plan.cpu().numpy().astype(np.float64))
        return self.queue.popleft() * self.half + self.centre

    def flat(self, ob: Mapping[str, Any]) -> NDArray:
        """The parts side by side, [Do] float32."""
        found = []
        for key, width in self.parts.items():
            if key not in ob:
                raise ValueError(f"no {key!r} in the observation{nearest(key, ob)}")
            if key in self.images:
                part = picture(np.asarray(ob[key]))
            else:
                part = np.ravel(np.asarray(ob[key], np.float32))
            if len(part) != width:
                raise ValueError(
                    f"{key}: {np.shape(ob[key])}, and the policy reads {width} numbers"
                )
            found.append(part)
        return np.concatenate(found)


def picture(image: NDArray) -> NDArray:
    """An image packed: uint8 [H, W, 3], or as robomimic gives them, [3, H, W] in [0, 1]."""
    if image.dtype.kind == "f":
        image = (255 * np.moveaxis(image, 0, -1)).round().astype(np.uint8)
    return pack(image)


def meaning(run: Run, width: int) -> tuple[dict[str, int], NDArray, NDArray]:
    """The parts of an observation [width], and half the range of actions [Da] with its middle.

    As the run's data tell them; what they do not tell is asked of its environment. Without either
    an observation is `flat`, and actions are in [-1, 1].
    """
    told = run.meaning()
    parts, low, high = read_parts(told), told.get("action_low"), told.get("action_high")
    if not parts or low is None or high is None:
        env = make_env(run.config, 1)
        if env is not None:
            parts = parts or env.env.obs_parts or {}
            low, high = env.env.action_low, env.env.action_high
            env.close()
    bounds = [
        np.asarray(value, np.float64)
        for value in (-1 if low is None else low, 1 if high is None else high)
    ]
    parts = parts or {FLAT: width}
    if sum(parts.values()) != width:
        raise RheoError(
            f"{run.path}: its policy reads {width} numbers a step, which are not "
            f"{listed_parts(parts)}, as its data are described"
        )
    return parts, (bounds[1] - bounds[0]) / 2, (bounds[1] + bounds[0]) / 2


def warn_of_older(run: Run) -> None:
    """Says so where a policy learned from robosuite's observations of before 1.5."""
    args = inside(run.config, "env.options.env_args")
    version = args.get("env_version") if isinstance(args, Mapping) else None
    if version is not None and numbers(version) < OTHER_OBJECT:
        text = "%s: trained on observations of robosuite %s, whose `object` is not that of 1.5: "
        log.warning(text + "give it those of a robosuite before 1.5", run.path, version)
