"""Environments in worker processes, behind the vector contract.

Every worker hosts a `GymnasiumVector` of its share of the rows, so same-step reset, guards, success
and state are that class's own, and the numbers are those of one process to the last bit, however
many workers there are: row i is seeded with seed + i wherever it lives, and a state of one number
of workers goes on with another, or with none.

A worker that dies, does not answer or has an environment that raises is replaced. Its rows are cut
there, truncated and not valid, and begin new episodes from seeds of their own.
"""

import contextlib
import logging
import mmap
import os
import select
from collections.abc import Callable, Mapping
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from ..errors import EnvError, EnvFault
from ..shared import nameless
from .batch import Step
from .guard import place
from .hosted import Layout, send
from .vector import VectorEnv
from .worker import Gone, Worker, jobs, shut

log = logging.getLogger("rheo")
HURRY = 5.0  # seconds that a silent worker has once somebody wants to stop
SLICE = 1.0  # seconds of a wait at a time: a learner that was stopped does not count it as silence
FLAGS = ("reward", "terminated", "truncated", "valid", "success")
PLAYED = ("physics", "begun", "acted")  # of a state: an entry for each row, or none at all


class Workers(VectorEnv):
    """num_envs environments shared out among worker processes.

    options: of the environment's constructor. steps: the longest chunk that is given at once.
    step_timeout: seconds without any progress after which a worker is taken for hung. restarts:
    workers that are replaced (counters have them too); the next failure raises EnvError, and so
    does one before the first step is done. hurried: whether somebody wants to stop, who does not
    wait so long.
    """

    hurried: Callable[[], bool] = staticmethod(lambda: False)
    backend = "gymnasium"  # whose state it has

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        workers: int,
        options: dict[str, Any],
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
        steps: int = 1,
        step_timeout: float = 120.0,
        restarts: int = 3,
    ) -> None:
        self._team: list[Worker] = []
        self._end = Finalize(self, shut, (self._team,), exitpriority=10)
        try:
            for job in jobs(env_id, num_envs, workers, options):
                self._team.append(Worker(job))
            sizes = [worker.sizes() for worker in self._team]
            obs_dim, low, high, limit, self.obs_parts, self.obs_images = sizes[0]
            box = spaces.Box(low, high, dtype=np.float64)
            super().__init__(env_id, num_envs, obs_dim, box, limit, dtype)
            self._layout = Layout(num_envs, workers, steps, obs_dim, self.action_dim)
            self._share()
        except BaseException:
            self.close()
            raise
        self._next_seed = self._seed = seed
        self.step_timeout, self.restarts = step_timeout, restarts
        self.counters["restarts"] = 0
        self._base = dict(self.counters)  # of processes that are gone, and of a state
        self._failures, self._worked, self._has_success = 0, False, False
        self._dead: set[int] = set()  # workers that were not replaced
        self._lost = np.zeros(num_envs, bool)  # rows that begin anew without being told so yet

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [worker.process.pid for worker in self._team if worker.process.pid]

    def _share(self) -> None:
        """Makes the shared memory and gives it to the workers."""
        try:
            self._memory = nameless(self._layout.size)
            block = mmap.mmap(self._memory, self._layout.size)
        except OSError as error:
            raise EnvError(
                f"{self.id}: no {self._layout.size} bytes of shared memory for workers: {error}; "
                "set env.workers=0"
            ) from error
        Finalize(self, os.close, (self._memory,))
        self._views = self._layout.views(block)
        self._elapsed = self._views["elapsed"]
        for worker in self._team:
            worker.hand(self._layout, self._memory)

    # ---- asking and waiting ----------------------------------------------------------------------

    def _ask(self, words: Mapping[int, tuple[Any, ...]]) -> tuple[dict[int, Any], dict[int, str]]:
        """Asks workers, each by words of its own; their answers, and causes of those that failed.

        Raises RuntimeError for a fault of ours in one of them.
        """
        if not self._team:
            raise RuntimeError(f"{self.id}: asked for something after it was closed")
        for w, given in words.items():
            with contextlib.suppress(OSError):  # one that died is named where its answer is read
                send(self._team[w].pipe, *given)
        values: dict[int, Any] = {}
        dead = [w for w in words if self._team[w].pipe.closed]
        failed = {w: f"{self._where(w)}: its process is gone" for w in dead}
        poller = select.poll()
        waiting = {self._team[w].pipe.fileno(): w for w in words if w not in failed}
        for handle in waiting:
            poller.register(handle, select.POLLIN)
        pause = min(SLICE, self.step_timeout)
        at, quiet = self._views["at"][:, 0], dict.fromkeys(waiting, 0.0)
        before = at.copy()
        while waiting:
            ready = [handle for handle, _ in poller.poll(1e3 * pause)]
            for handle in ready:
                self._read(waiting[handle], values, failed)
            for handle in () if ready else waiting:
                same = at[waiting[handle]] == before[waiting[handle]]
                quiet[handle] = quiet[handle] + pause if same else 0.0
            before = before if ready else at.copy()
            hurried = self.step_timeout > HURRY and self.hurried()
            limit = HURRY if hurried else self.step_timeout
            silent = [handle for handle in waiting if quiet[handle] >= limit]
            for handle in silent:
                why = "and the run is to stop" if hurried else "(env.step_timeout)"
                text = f"no answer for {limit:g} s {why}"
                failed[waiting[handle]] = f"{self._where(waiting[handle])}: {text}"
            for handle in (*ready, *silent):
                poller.unregister(handle)
                del waiting[handle]
        return values, failed

    def _read(self, w: int, values: dict[int, Any], failed: dict[int, str]) -> None:
        """Takes a worker's answer, or the cause why there is none."""
        try:
            values[w] = self._team[w].answer()
        except Gone as gone:
            failed[w] = f"{self._where(w)}: its process {gone}"
        except EnvError as error:
            failed[w] = str(error)

    def _where(self, w: int) -> str:
        """Which environment a worker works on, for a message."""
        v, row = self._views, self._team[w].rows.start + int(self._views["at"][w, 1])
        return place(self.id, row, *(int(v[name][row]) for name in ("seed", "episode", "elapsed")))

    def _recover(self, w: int, cause: str, again: tuple[Any, ...] | None = None) -> None:
        """Another process in place of a worker that failed; its rows begin new episodes.

        again: the words of the reset that it failed in; else every row has a seed of its own, which
        follows from its first one and the number of restarts. Raises EnvError when no restart is
        left, or none would help as not one step was ever done.
        """
        worker = self._team[w]
        while True:
            worker.kill()
            self._dead.add(w)
            if not self._worked:
                raise EnvFault(cause)
            if self._failures == self.restarts:
                used = f"env.restarts={self.restarts}: no worker is started again"
                raise EnvFault(f"{cause}; {used}")
            self._failures += 1
            self._base["restarts"] += 1
            text = "%s; %s: new episodes in a new process (restart %d of env.restarts=%d)"
            log.warning(text, cause, worker.named(), self._failures, self.restarts)
            try:
                worker.begin()
                if worker.sizes()[0] != self.obs_dim:
                    raise EnvError(f"{self.id}: has another size of observations when made again")
                worker.hand(self._layout, self._memory)
            except EnvError as error:
                cause = str(error)
                continue
            self._count(w)
            failed = self._ask({w: again or ("reset", None, self._own_seeds(worker.rows))})[1]
            if not failed:
                self._dead.discard(w)
                return
            cause = failed[w]

    def _own_seeds(self, rows: slice) -> list[int | None]:
        """Seeds of rows that begin anew out of turn; none where there never was one."""
        first, turn = self._seed, self._base["restarts"]
        if first is None:
            return [None] * (rows.stop - rows.start)
        return [
            int(np.random.SeedSequence((first + i, turn)).generate_state(1)[0])
            for i in range(rows.start, rows.stop)
        ]

    def _count(self, w: int | None = None) -> None:
        """Adds up the workers' counts; those of a worker that is gone are kept."""
        counts, names = self._views["counters"], ("physics_resets", "bad_obs")
        if w is not None:
            for name, count in zip(names, counts[w].tolist(), strict=True):
                self._base[name] += count
            counts[w] = 0
        for name, count in zip(names, counts.sum(0).tolist(), strict=True):
            self.counters[name] = self._base[name] + count
        self.counters["restarts"] = self._base["restarts"]

    # ---- the contract ----------------------------------------------------------------------------

    def reset(self, seed: int | None = None) -> Tensor:
        seed = self._next_seed if seed is None else seed
        self._next_seed = None
        self._seed = self._seed if seed is None else seed
        words = ("reset", seed)
        for w, cause in self._ask(dict.fromkeys(range(len(self._team)), words))[1].items():
            self._recover(w, cause, None if seed is None else words)
        self._lost[:] = False
        self._started = True
        return self._tensor(self._views["obs"])

    def step(self, action: Tensor, active: Tensor | None = None) -> Step:
        return self._chunk(action[:, None], active, None)[0]

    def ahead(
        self, action: Tensor, active: Tensor | None = None, last: int | None = None
    ) -> list[Step] | None:
        if action.shape[1] > self._layout.steps or not bool(torch.isfinite(action).all()):
            return None  # step by step an action that is not finite is refused at its turn
        return self._chunk(action, active, last)

    def _chunk(self, action: Tensor, active: Tensor | None, last: int | None) -> list[Step]:
        """The steps of action [N, K, Da] in the rows that are active."""
        asked = np.ones(self.num_envs, bool) if active is None else active.numpy()
        self._physical(action[:, 0], None if active is None else np.flatnonzero(asked))  # the guard
        v, steps = self._views, action.shape[1]
        v["active"][:] = asked & ~self._lost
        v["action"][:, :steps] = action.detach().cpu().numpy()
        start = v["final"][:, 0] = v["obs"].copy()
        for name in FLAGS:
            v[name][:, :steps] = 0
        busy = [w for w, worker in enumerate(self._team) if v["active"][worker.rows].any()]
        told, failed = self._ask(dict.fromkeys(busy, ("step", steps, last)))
        cut = self._lost.copy()
        for w, cause in failed.items():
            rows = self._team[w].rows
            v["final"][rows, 0] = start[rows]  # what it saw since may not be drawn
            self._recover(w, cause)
            cut[rows] = True
        for name in FLAGS if cut.any() else ():
            v[name][cut] = 0
        v["truncated"][cut & asked, 0] = True
        self._lost = cut & ~asked
        self._worked |= bool(told)
        if v["counters"].any():
            self._count()
        taken = max([1, *(count for count, _ in told.values())])
        known = min([steps, *(since for _, since in told.values())])
        found = self._steps(asked, taken, 0 if self._has_success else known)
        self._has_success |= known < steps
        return found

    def _steps(self, asked: NDArray, taken: int, known: int) -> list[Step]:
        """What the shared memory says of the steps of a chunk; success from step `known` on."""
        v, still, found = self._views, ~asked, []
        obs = v["obs"]
        for k in range(taken):
            terminated, truncated = v["terminated"][:, k].copy(), v["truncated"][:, k].copy()
            final = v["final"][:, k]
            if still.any():
                final = np.where(still[:, None], obs, final)
            ended = terminated | truncated
            still = still | ended
            last = following = self._tensor(final)
            if ended.any():
                following = self._tensor(np.where(still[:, None], obs, final))
            reward, valid = self._tensor(v["reward"][:, k]), v["valid"][:, k].copy()
            solved = None if k < known else torch.from_numpy(v["success"][:, k].copy())
            flags = torch.from_numpy(terminated), torch.from_numpy(truncated)
            found.append(Step(following, reward, *flags, last, torch.from_numpy(valid), solved))
        return found

    def state_dict(self) -> dict[str, Any]:
        """That of one process with all rows; of a worker that failed, it begins anew."""
        alive = [w for w in range(len(self._team)) if w not in self._dead]
        told, failed = self._ask(dict.fromkeys(alive, ("get",)))
        for w, cause in failed.items():
            if self._dead:  # it is over
                self._dead.add(w)
                continue
            self._recover(w, cause)
            self._lost[self._team[w].rows] = True
        state = {**self._common_state(), "obs": self._views["obs"].copy()}
        state["exact"] = len(told) == len(self._team) and all(t["exact"] for t in told.values())
        keys = [t["success_key"] for t in told.values() if t["success_key"] is not None]
        state["success_key"], state["rng"] = next(iter(keys), None), []
        for w, worker in enumerate(self._team):
            state["rng"] += told[w]["rng"] if w in told else [[]] * worker.job.share
        for name in PLAYED:
            rows = [entry for w in sorted(told) for entry in told[w][name]]
            state[name] = rows if len(rows) == self.num_envs else []
        return state

    def load_state_dict(self, state: dict[str, Any]) -> Tensor | None:
        self._load_common(state)
        self._base = dict(self.counters)
        self._has_success = state.get("success_key") is not None
        self._next_seed = None
        self._lost[:] = False
        self._views["counters"][:] = 0
        parts = {w: self._part(state, worker.rows) for w, worker in enumerate(self._team)}
        told, failed = self._ask({w: ("set", part) for w, part in parts.items()})
        for cause in failed.values():
            raise EnvFault(cause)
        return self._tensor(self._views["obs"]) if any(told.values()) else None

    def _part(self, state: dict[str, Any], rows: slice) -> dict[str, Any]:
        """The state of a worker's rows."""
        lists = {name: list(state.get(name) or [])[rows] for name in ("rng", *PLAYED)}
        part = {**state, **lists, "num_envs": rows.stop - rows.start}
        part |= {name: np.asarray(state[name])[rows] for name in ("elapsed", "obs")}
        return part | {"counters": dict.fromkeys(("physics_resets", "bad_obs"), 0)}

    def close(self) -> None:
        self._end()
