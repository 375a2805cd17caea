"""A run's policy in other people's loops: what `rheo.load` gives."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rheo.algos.contract import Algorithm
from rheo.algos.resip import ResiP
from rheo.envs.data.demos import FLAT
from rheo.envs.manipulation.robosuite_tasks import OTHER_OBJECT, numbers
from rheo.envs.noise import TILE, EpisodeNoise, filled
from rheo.envs.parts import listed_parts, read_parts
from rheo.envs.pixels import pack, pixels
from rheo.envs.rollout import TILE_GPU
from rheo.errors import RheoError, nearest

from .assemble import executed, make_env, prepare, revived
from .config.top import EVAL_SEED, inside
from .evaluate import evaluate_folder
from .fast import fast_deploy
from .sight import frozen
from .store.run import Run

log = logging.getLogger("rheo")
OTHER_ROWS = "%d observations at once, and these episodes run %d: call reset() before other ones"


class Policy:
    """The deployed policy of a run's last checkpoint: observations in, actions out.

    It keeps what an episode needs: the history of observations, the rest of a plan, and the noise.
    N episodes run side by side, as many as the first observations have rows. Row i of them, with
    the seed of an evaluation, acts as in that evaluation's environment i, bit for bit.

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
        self.corrects = isinstance(self.algo, ResiP)  # each action of a base's plan
        if type(self.algo).wrap is not Algorithm.wrap and not self.corrects:
            raise RheoError(
                f"{opened.path}: a {type(self.algo).__name__} run acts inside its environment "
                f"({self.algo.beyond}); roll it out with `rheo eval`"
            )
        self.run, self.seed = opened, seed
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
        warn_of_older(opened)
        self._told = False
        self._begin(0)

    def _begin(self, count: int) -> None:
        """No episodes yet, of so many rows."""
        device, stream = str(self.algo.generator.device), int(self.corrects)
        self.noise = EpisodeNoise(self.seed, count, device, stream)
        width = sum(self.obs_parts.values())
        self.history = np.zeros((count, self.steps, width), np.float32)
        self.plan = np.zeros((count, self.execute, len(self.action_low)))
        self.used = np.full(count, self.execute)  # steps of each row's plan
        self.begun = np.zeros(count, bool)

    def reset(self, rows: Any = None) -> None:
        """New episodes: of all rows, or of some (a mask [N], or their numbers)."""
        over = np.zeros(len(self.begun), bool)
        over[slice(None) if rows is None else np.asarray(rows)] = True
        over &= self.begun
        self.noise.begin(over)
        if over.any():
            everyone = filled(np.arange(len(over)), self.tile)
            self.algo.ended(torch.from_numpy(over[everyone]))
        self.used[over], self.begun[over] = self.execute, False

    def act(self, obs: Any) -> Any:
        """The action [Da] for an observation [Do], or [N, Da] for those of N episodes, [N, Do].

        Actions are in the environment's units. An observation is an array, its parts side by side
        in the order of `obs_parts`, or a mapping of these parts, of which others are not read;
        images are uint8 [H, W, 3], or float [3, H, W] in [0, 1]. Of tensors the action is one too.

        Raises ValueError for a part that is missing or of another size, and for another N than that
        of the running episodes.
        """
        now, single, device = self.rows(obs)
        if len(now) != len(self.begun):
            if self.begun.any():
                raise ValueError(OTHER_ROWS % (len(now), len(self.begun)))
            self._begin(len(now))
        self.history[:, :-1] = self.history[:, 1:]
        self.history[:, -1] = now
        self.history[~self.begun] = now[~self.begun, None]
        self.begun[:] = True
        due = np.flatnonzero(self.used == self.execute)
        if len(due):
            self.plan[due] = self.plans(due)
            self.used[due] = 0
        action = self.plan[np.arange(len(now)), self.used]
        if self.corrects:
            action = self.corrected(action)
        self.used += 1
        half = (self.action_high - self.action_low) / 2
        action = action * half + (self.action_high + self.action_low) / 2
        action = action[0] if single else action
        return action if device is None else torch.from_numpy(action).float().to(device)

    def plans(self, rows: NDArray) -> NDArray:
        """New plans [rows, execute, Da] in [-1, 1]."""
        if len(rows) < len(self.begun) and type(self.algo).ended is not Algorithm.ended:
            raise RheoError(
                f"{self.run.path}: a {type(self.algo).__name__} remembers its rows, so that all "
                "of them have to be reset together, or each has a policy of its own"
            )
        self.noise.rows = filled(rows, self.tile)
        plan = (self.algo.plan if self.corrects else self.deploy)(self.seen(rows), self.noise)
        return plan[: len(rows), : self.execute].cpu().numpy().astype(np.float64)

    def seen(self, rows: NDArray) -> Tensor:
        """What the algorithm sees of these rows, in whole tiles, [rows or more, O]."""
        device = self.algo.generator.device
        obs = torch.from_numpy(self.history[rows].reshape(len(rows), -1)).to(device)
        if self.eye is not None:
            with torch.no_grad():
                obs = self.eye.encode(obs)
        return obs[torch.from_numpy(filled(np.arange(len(rows)), self.tile)).to(device)]

    def corrected(self, planned: NDArray) -> NDArray:
        """Planned actions [N, Da] in [-1, 1] with their corrections, as `Residual.step` acts."""
        everyone = np.arange(len(planned))
        beside = np.concatenate([planned, (self.used / self.execute)[:, None]], 1)
        beside = torch.from_numpy(beside[filled(everyone, self.tile)].astype(np.float32))
        obs = self.seen(everyone)
        delta = self.deploy(torch.cat([obs, beside.to(obs.device)], 1), self.noise)
        offset = self.algo.residual_scale * delta[: len(planned), 0].cpu().numpy()
        return np.clip(planned.astype(np.float32) + offset, -1, 1).astype(np.float64)

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

    def rows(self, obs: Any) -> tuple[NDArray, bool, torch.device | None]:
        """Observations [N, Do] float32, whether it was a single one, and the device of tensors."""
        named = isinstance(obs, Mapping)
        given = obs if named else {FLAT: obs}
        first = next(iter(given.values()), None)
        device = first.device if isinstance(first, torch.Tensor) else None
        given = {key: value.cpu() if isinstance(value, torch.Tensor) else value
                 for key, value in given.items()}  # fmt: skip
        if not named and FLAT not in self.obs_parts:
            whole = numbers_of(FLAT, given[FLAT], sum(self.obs_parts.values()))
            return whole[0], whole[1], device
        found = []
        for key, width in self.obs_parts.items():
            if key not in given:
                raise ValueError(f"no {key!r} in the observation{nearest(key, given)}")
            found.append((pictures if key in self.images else numbers_of)(key, given[key], width))
        singles = {single for _, single in found}
        if len(singles) > 1 or len({len(part) for part, _ in found}) > 1:
            told = {key: np.shape(given[key]) for key in self.obs_parts}
            raise ValueError(f"parts of different numbers of observations: {told}")
        return np.concatenate([part for part, _ in found], 1), singles.pop(), device


def numbers_of(key: str, value: Any, width: int) -> tuple[NDArray, bool]:
    """A part [N, width] float32 of an observation, and whether it was a single one."""
    array = np.asarray(value, np.float32)
    single = array.ndim < 2 or array.size == width != array.shape[-1]  # else a matrix, one part
    rows = array.reshape(1, -1) if single else array.reshape(len(array), -1)
    if rows.shape[1] != width:
        raise ValueError(f"{key}: {np.shape(value)}, and the policy reads {width} numbers")
    return rows, single


def pictures(key: str, value: Any, width: int) -> tuple[NDArray, bool]:
    """As `numbers_of`, of images: uint8 [H, W, 3], or [3, H, W] in [0, 1] as robomimic has them."""
    image = np.asarray(value)
    if image.dtype.kind == "f":
        image = (255 * np.moveaxis(image, -3, -1)).round().astype(np.uint8)
    single = image.ndim == 3
    rows = np.stack([pack(each) for each in (image[None] if single else image)])
    if rows.shape[1] != width:
        raise ValueError(f"{key}: {np.shape(value)}, and the policy reads {width} numbers")
    return rows, single


def meaning(run: Run, width: int, actions: int) -> tuple[dict[str, int], NDArray, NDArray]:
    """The parts of an observation [width], and the bounds of actions [Da] in their units.

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
        np.broadcast_to(np.asarray(value, np.float64), actions)
        for value in (-1 if low is None else low, 1 if high is None else high)
    ]
    parts = parts or {FLAT: width}
    if sum(parts.values()) != width:
        raise RheoError(
            f"{run.path}: its policy reads {width} numbers a step, which are not "
            f"{listed_parts(parts)}, as its data are described"
        )
    return parts, bounds[0], bounds[1]


def warn_of_older(run: Run) -> None:
    """Says so where a policy learned from robosuite's observations of before 1.5."""
    args = inside(run.config, "env.options.env_args")
    version = args.get("env_version") if isinstance(args, Mapping) else None
    if version is not None and numbers(version) < OTHER_OBJECT:
        text = "%s: trained on observations of robosuite %s, whose `object` is not that of 1.5: "
        log.warning(text + "give it those of a robosuite before 1.5", run.path, version)
