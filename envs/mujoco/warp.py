"""MuJoCo tasks on MuJoCo Warp: N worlds on one device, which their tensors never leave.

Physics are MuJoCo Warp's in float32 (`worlds.py`); observations, rewards and terminations are the
formulas that the host's backend uses (`tasks.py`, `walkers.py`, `hands.py`, `fetch.py`,
`control_tasks.py`), on tensors over the simulator's own memory; episodes begin as the task's own
reset draws them (`starts.py`). A step asks the device for nothing: it always does everything for
every world, masked, in buffers that stay where they are.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import EnvError
from ..batch import Step
from ..bounds import Declared, Extremes
from ..families import parts_of
from ..guard import NonFiniteAction
from ..vector import VectorEnv
from .native import TASKS, opened
from .physics import FORCES
from .starts import Maker, Starts, bank_row, remembered
from .variety import Ranges, fields_of, values
from .worlds import ROOMS, Worlds

LARGEST = 1e10  # of positions and velocities, beyond which MuJoCo resets a simulation (mjMAXVAL)
FAULTS = ("physics_resets", "overflow", "bad_obs")  # a row has at most one of them


def has(env_id: str) -> bool:
    """Whether this backend has a task: of those with formulas, all but five of DeepMind Control."""
    return env_id in TASKS and stem(env_id) in ROOMS


def stem(env_id: str) -> str:
    """The name under which a task's room is known: Hopper-v5 -> Hopper."""
    return env_id.partition("-v")[0].removesuffix("Sparse").removesuffix("Dense")


def tasks() -> list[str]:
    """The ids that this backend has."""
    return [env_id for env_id in TASKS if has(env_id)]


class WarpVector(VectorEnv):
    """N worlds of one task on a device. Options are those of gymnasium's class for the id.

    counters: `physics_resets` are worlds with a position or velocity that is not below LARGEST,
    `overflow` those with more contacts or constraint rows than there is room for; such rows are cut
    as the contract says and begin anew, while the others go on untouched. randomise: ranges of
    the factors by which the worlds' models differ (`variety`); episodes begin as without it.
    """

    backend = "warp"
    device: torch.device

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        randomise: Ranges | None = None,
        **options: Any,
    ) -> None:
        made, kind, settings, obs_dim, limit = one = opened(env_id, options)
        template = one.template
        super().__init__(env_id, num_envs, obs_dim, template.action_space, limit, dtype)
        self.obs_parts = parts_of(made)
        self.device = placed(device)  # pyright: ignore[reportIncompatibleVariableOverride]
        derived = kind.derived(settings)
        self._model, self._ranges = template.model, randomise or {}
        if "mass" in self._ranges and "cinert" in derived:
            raise EnvError(
                f"env.randomise.mass: {env_id} observes inertias, and its beginnings are drawn in "
                "the model as it ships; leave mass out"
            )
        self._worlds = Worlds(
            template.model, num_envs, self.device, substeps=kind.substeps(template),
            forces=FORCES in derived, name=env_id,
            room=None if options.get("xml_file") else ROOMS[stem(env_id)],
            own=[*fields_of(self._ranges), *kind.own], places=kind.amends, synced=kind.synced,
        )  # fmt: skip
        views = {name: self._worlds.bind(name) for name in ("qpos", "qvel", "ctrl", *derived)}
        views |= {name: self._worlds.field(name) for name in kind.own}
        self._task, self._views = kind(template, settings, views), views
        self._qpos, self._qvel = views["qpos"], views["qvel"]
        self._memory = remembered(self._task, self._worlds.bind)
        self._maker = Maker(kind, template, settings, obs_dim)
        self._scale, self._shift = (self._real(each) for each in (self._half, self._centre))
        self._world = torch.arange(num_envs, device=self.device)
        self._everywhere = self._world >= 0
        self._age, self._episode, self._bad_step = (torch.zeros_like(self._world) for _ in range(3))
        self._position = self._real(np.zeros(num_envs))
        self._obs = self._real(np.zeros((num_envs, obs_dim)))
        declared = Declared(env_id, made.observation_space)
        self._extremes = None if declared.silent else Extremes(declared, self.device)
        self._faults = torch.zeros(len(FAULTS), dtype=torch.int64, device=self.device)
        self._seed, self._bank = fresh_seed() if seed is None else seed, None
        made.close()

    @property
    def worlds(self) -> Worlds:
        """The physics alone, for who measures them."""
        return self._worlds

    def _real(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device=self.device)

    @property
    def counters(self) -> dict[str, int]:
        """Read from the device. Raises NonFiniteAction where an action was not finite."""
        far = self._extremes
        outside = [] if far is None else [far.outside()[None]]
        *numbers, refused = torch.cat([self._faults, *outside, self.refused()[None]]).tolist()
        if refused:
            self.refuse()
        faults = numbers[: len(FAULTS)]
        if far is not None and numbers[-1]:
            far.tell()
            self._extremes = None
        return dict(zip(FAULTS, faults, strict=True))

    def refused(self) -> Tensor:
        return (self._bad_step > 0).sum()

    def refuse(self) -> None:
        steps = self._bad_step.cpu().numpy()
        for index in np.flatnonzero(steps).tolist():
            raise NonFiniteAction(self.id, index, int(steps[index]), None)

    # ---- beginnings ----

    def reset(self, seed: int | None = None) -> Tensor:
        if seed is None and self._started:
            starts = self._next(self._everywhere)
        else:
            self._seed = self._seed if seed is None else seed
            self._settle()
            starts = self._maker.from_seed(self._seed, self.num_envs, self.device)
            self._episode.zero_()
        self._begin(self._everywhere, starts)
        self._obs.copy_(starts.obs)
        self._started = True
        return self._obs.to(self.dtype, copy=True)

    def _settle(self) -> None:
        """What the seed fixes for good: the bank, and the worlds' own models."""
        self._bank = self._maker.bank(self._seed, self.device)
        own = values(self._model, self._ranges, self._seed, self.num_envs) if self._ranges else {}
        for name, value in own.items():
            self._worlds.field(name).copy_(self._real(value))

    def _next(self, ended: Tensor) -> Starts:
        """What every world begins with next; those that ended [N] have one episode more."""
        assert self._bank is not None
        starts = self._bank.rows(bank_row(self._world, self._episode))
        self._episode += ended
        return starts

    def _begin(self, ended: Tensor, starts: Starts) -> None:
        """Row i of the starts in the worlds that ended [N]; all but the observation."""
        rows, state = ended[:, None], self._worlds.state
        new = {"qpos": starts.qpos, "qvel": starts.qvel}
        for name, view in state.items():
            if name in new:
                torch.where(rows, new[name], view, out=view)
            else:
                view.masked_fill_(rows if view.dim() > 1 else ended, 0)
        for name, value in self._memory.items():
            where = ended.view(-1, *[1] * (value.dim() - 1))
            torch.where(where, starts.memory[name].view_as(value), value, out=value)
        torch.where(ended, starts.position, self._position, out=self._position)
        self._age.masked_fill_(ended, 0)

    # ---- a step ----

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        self._ready(action)
        rows = self._everywhere if active is None else active.to(self.device)
        value = action.detach().to(self.device, torch.float32)
        finite = value.isfinite().all(1) | ~rows
        value = torch.where(finite[:, None], value, 0.0)
        state = self._worlds.state.values()
        before = None if active is None else [view.clone() for view in state]
        physical = value if self._identity else value * self._scale + self._shift
        self._advance(rows, self._task.inputs(physical))
        obs, position, reward, terminated = self._score()
        sound = self._sound(rows, finite, obs, reward)
        ended_here = terminated & sound
        truncated = rows & ((self._age >= self._limit) | ~sound)
        if before is not None:  # the engine moved the idle rows too
            for view, old in zip(state, before, strict=True):
                torch.where(rows.view(-1, *[1] * (view.dim() - 1)), view, old, out=view)
        if position is not None:
            torch.where(sound, position, self._position, out=self._position)
        final = torch.where(sound[:, None], obs, self._obs)
        solved = self._task.success() & sound if self._task.reports else None
        over = ended_here | truncated
        starts = self._next(over)
        self._begin(over, starts)
        torch.where(over[:, None], starts.obs, final, out=self._obs)
        return Step(
            self._obs.to(self.dtype, copy=True),
            torch.where(sound, reward, 0.0).to(self.dtype),
            ended_here,
            truncated,
            final.to(self.dtype),
            sound,
            solved,
        )

    def _advance(self, rows: Tensor, given: dict[str, Tensor]) -> None:
        """One step of all worlds under what they are given by field; the rows [N] grow older."""
        task = self._task
        for name, value in given.items():
            self._views[name].copy_(value)
        self._worlds.step()
        if task.amends:
            task.amend(slice(None))
            self._worlds.place()
        for name, value in task.carried().items():
            torch.where(rows[:, None], value, task.kept[name], out=task.kept[name])
        self._age += rows

    def _score(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Observation, position, reward and termination of the worlds as they stand."""
        task, obs = self._task, torch.empty_like(self._obs)
        task.observe(obs)
        position, speed = task.position(), self._position
        if position is not None:
            speed = (position - self._position) / task.dt
        reward, terminated = task.score(self._views["ctrl"], speed, obs)
        return obs, position, reward, ~self._everywhere if terminated is None else terminated

    def _sound(self, rows: Tensor, finite: Tensor, obs: Tensor, reward: Tensor) -> Tensor:
        """Which of the rows were stepped and can be learned from [N]; counts the faults of others.

        finite [N]: False where the action was not, in these rows.
        """
        worlds = self._worlds
        small = (self._qpos.abs() < LARGEST).all(1) & (self._qvel.abs() < LARGEST).all(1)
        whole = (worlds.overflow & worlds.lost) == 0
        worlds.overflow.zero_()
        right = obs.isfinite().all(1) & reward.isfinite()
        first = torch.where(finite | (self._bad_step > 0), self._bad_step, self._age)
        self._bad_step.copy_(first)
        sound = rows & finite
        counts = []
        for good in (small, whole, right):
            counts.append((sound & ~good).sum())
            sound = sound & good
        self._faults += torch.stack(counts)
        if self._extremes is not None:
            self._extremes.note(obs, sound)
        return sound

    def close(self) -> None:
        """Nothing is open: the worlds are freed with the object."""

    # ---- the whole state ----

    def _parts(self) -> dict[str, Tensor]:
        """Every buffer that the next steps depend on."""
        own = {"position": self._position, "obs": self._obs, "age": self._age}
        counts = {"episode": self._episode, "faults": self._faults}
        return {**self._worlds.state, **self._memory, **own, **counts}

    def state_dict(self) -> dict[str, Any]:
        """As the contract says. Raises NonFiniteAction where an action was not finite."""
        parts = {name: value.cpu().numpy().copy() for name, value in self._parts().items()}
        return {**self._common_state(), "seed": self._seed, "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._load_common(state)
        self._seed = int(state["seed"])
        self._settle()
        for name, value in self._parts().items():
            value.copy_(torch.as_tensor(np.asarray(state["parts"][name])))
        self._bad_step.zero_()


def placed(device: str | torch.device) -> torch.device:
    """A device with its number, as tensors have it."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def fresh_seed() -> int:
    """A seed that nobody chose."""
    return int(np.random.SeedSequence().generate_state(1)[0])
