"""Episodes that run side by side under a policy: what it remembers of them, and what it answers."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rheo.algos.contract import Algorithm
from rheo.envs.data.demos import FLAT
from rheo.envs.noise import EpisodeNoise, filled
from rheo.envs.pixels import Images, pack
from rheo.errors import RheoError, nearest
from rheo.policies.realtime import can_continue, continuing

OTHER_ROWS = "%d observations at once, and these episodes run %d: call reset() before other ones"


class Episodes:
    """N episodes, as many as the first observations have rows: histories, rests of plans, noise.

    Row i, with the seed of an evaluation, acts as in that evaluation's environment i, bit for bit.

    origin: the file or folder that it came from. algo, deploy: what decides, for `tile` rows and
    multiples of it. steps: observations in a history. obs_parts: the named parts of an observation
    with their widths, in order; images: sizes of those that are. action_low and action_high [Da]:
    bounds, in the environment's units. horizon: steps of a plan, of which `usable` were learned and
    `execute` are executed. corrects: whether each action of a plan is corrected when it is due.
    first: number of the first row.
    """

    origin: str
    algo: Any
    deploy: Callable[..., torch.Tensor]
    tile: int
    steps: int
    obs_parts: dict[str, int]
    images: Images
    eye: Any = None  # encoder of images that stands before the policy
    corrects: bool = False
    action_low: NDArray
    action_high: NDArray
    horizon: int
    usable: int
    execute: int
    seed: int
    first: int = 0

    def sibling(self, seed: int, first: int = 0, execute: int | None = None) -> "Episodes":
        """The same policy for other episodes: its weights, and history, plans and noise of its own.

        Row i acts as row first + i of a policy with that seed. execute: None: as this one. Raises
        ValueError. Two of them may take turns, not act at the same time.
        """
        other = copy.copy(self)
        other.seed, other.first = seed, first
        other.execute = self.execute if execute is None else execute
        if not 1 <= other.execute <= self.horizon:
            raise ValueError(f"execute={execute}: plans have {self.horizon} steps")
        other._begin(0)
        return other

    def _begin(self, count: int) -> None:
        """No episodes yet, of so many rows."""
        device, stream = str(self.algo.generator.device), int(self.corrects)
        self.noise = EpisodeNoise(self.seed, count, device, stream, self.first)
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
        self.see(now)
        action = self.step()[0] if single else self.step()
        return action if device is None else torch.from_numpy(action).float().to(device)

    def see(self, now: NDArray) -> None:
        """Takes observations [N, Do], as `rows` gives them, into the history. Raises ValueError."""
        if len(now) != len(self.begun):
            if self.begun.any():
                raise ValueError(OTHER_ROWS % (len(now), len(self.begun)))
            self._begin(len(now))
        self.history[:, :-1] = self.history[:, 1:]
        self.history[:, -1] = now
        self.history[~self.begun] = now[~self.begun, None]
        self.begun[:] = True

    def step(self) -> NDArray:
        """The next action of every row [N, Da], of a new plan where the last one is used up."""
        due = np.flatnonzero(self.used == self.execute)
        if len(due):
            self.plan[due] = self.plans(due)[:, : self.execute]
            self.used[due] = 0
        action = self.plan[np.arange(len(self.used)), self.used]
        if self.corrects:
            action = self.corrected(action)
        self.used += 1
        return self.in_units(action)

    def chunk(self, left: NDArray | None = None, frozen: int = 0) -> tuple[NDArray, bool]:
        """A new plan [N, usable, Da] of what was seen last, and whether it goes on from `left`.

        left [N, L, Da]: what of the last plan is still to be executed, in the environment's units.
        The first `frozen` of it will be executed before this plan is there, and are its beginning;
        where the deployed policy is a flow, what follows is in accord with them and with the rest
        (`policies.realtime`). Raises ValueError for other shapes.
        """
        rows = np.arange(len(self.begun))
        if not self.begun.any():
            raise ValueError("no observation yet")
        if self.corrects:
            raise ValueError("each action of these plans is corrected when it is executed: use act")
        self.used[:] = self.execute  # `act` begins a new one
        if left is None:
            return self.in_units(self.plans(rows)[:, : self.usable]), False
        self.refuse_left(left, frozen, len(rows))
        flow, done = self.algo.deployed(), False
        if can_continue(flow):
            unit = torch.from_numpy(self.in_unit(left)).float().to(self.algo.generator.device)
            tiled = unit[torch.from_numpy(filled(rows, self.tile))]
            with continuing(flow, tiled, frozen) as calls:
                plan = self.plans(rows)
            done = bool(calls)
        else:
            plan = self.plans(rows)
        plan = self.in_units(plan[:, : self.usable])
        plan[:, :frozen] = left[:, :frozen]
        return plan, done

    def refuse_left(self, left: NDArray, frozen: int, rows: int) -> None:
        """Raises ValueError for what `chunk` cannot go on from."""
        shape = (rows, len(self.action_low))
        if left.ndim != 3 or left.shape[::2] != shape or left.shape[1] > self.usable:
            fits = [shape[0], f"0 to {self.usable}", shape[1]]
            raise ValueError(f"left: {left.shape}, and plans are {fits}")
        if not 0 <= frozen <= left.shape[1]:
            raise ValueError(f"frozen={frozen}: of {left.shape[1]} actions that are left")

    def in_units(self, action: NDArray) -> NDArray:
        """Actions of [-1, 1] in the environment's units."""
        half = (self.action_high - self.action_low) / 2
        return action * half + (self.action_high + self.action_low) / 2

    def in_unit(self, action: NDArray) -> NDArray:
        """The inverse of `in_units`."""
        half = (self.action_high - self.action_low) / 2
        return (action - (self.action_high + self.action_low) / 2) / half

    def plans(self, rows: NDArray) -> NDArray:
        """New plans [rows, T, Da] in [-1, 1]."""
        if len(rows) < len(self.begun) and type(self.algo).ended is not Algorithm.ended:
            raise RheoError(
                f"{self.origin}: a {type(self.algo).__name__} remembers its rows, so that all "
                "of them have to be reset together, or each has a policy of its own"
            )
        self.noise.rows = filled(rows, self.tile)
        plan = (self.algo.plan if self.corrects else self.deploy)(self.seen(rows), self.noise)
        return plan[: len(rows)].cpu().numpy().astype(np.float64)

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
            if key in self.images:
                found.append(pictures(key, given[key], self.images[key]))
            else:
                found.append(numbers_of(key, given[key], width))
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


def pictures(key: str, value: Any, size: Sequence[int]) -> tuple[NDArray, bool]:
    """As `numbers_of`, of images: uint8 [H, W, 3], or [3, H, W] in [0, 1] as robomimic has them."""
    image = np.asarray(value)
    wanted = f"{key}: {np.shape(value)}, and the policy reads images {[*size, 3]}"
    if image.ndim not in (3, 4):
        raise ValueError(wanted)
    if image.dtype.kind == "f":
        if not ((image >= 0) & (image <= 1)).all():
            raise ValueError(f"{key}: numbers beyond [0, 1]; give uint8 {[*size, 3]}")
        image = (255 * np.moveaxis(image, -3, -1)).round().astype(np.uint8)
    if image.shape[-3:] != (*size, 3):
        raise ValueError(wanted)
    single = image.ndim == 3
    return np.stack([pack(each) for each in (image[None] if single else image)]), single
