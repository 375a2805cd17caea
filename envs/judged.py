"""What environments answer is read here, one row at a time, and what is wrong with it is named."""

import math
import re
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ..errors import EnvError, EnvFault
from . import families
from .bounds import Declared
from .guard import LARGEST, number, once, own, place, shown, sound, told, truth
from .vector import VectorEnv

RETURNS = {  # what gymnasium's calls return
    "reset": "the pair (obs, info)",
    "step": "the five (obs, reward, terminated, truncated, info)",
}


class Judged(VectorEnv):
    """The part of a vector of gymnasium environments that asks them and checks their answers.

    Whatever one of them raises, be it SystemExit or KeyboardInterrupt, and whatever it returns that
    it should not becomes an EnvFault that names it, its seed, its episode and the step. A signal's
    own exceptions, and errors of ours, pass as they are.
    """

    _envs: list[gymnasium.Env]
    _seeds: NDArray  # the last one given to each
    _episodes: NDArray  # of each since then
    _success_key: str | None = None  # found in the first info that has one
    _broken = False  # whether one of them failed: its state says nothing any more
    first = 0  # index of the first one among those of all processes

    def _learn_spaces(self) -> None:
        """What the spaces promise. Raises EnvError for copies whose actions are not alike."""
        self._action_spaces = [env.action_space for env in self._envs]
        for i, space in enumerate(self._action_spaces):
            self._refuse_other_actions(i, space, self._action_spaces[0])
        self._declared = Declared(self.id, self._envs[0].observation_space)

    def _refuse_other_actions(self, i: int, now: Any, known: Any) -> None:
        """Raises EnvError where row i has other actions than those that it was made with."""
        if now is not known and now != known:
            raise self._wrong(i, "its action_space is now", f"{now}, but it was {known}", None)

    # ---- asking ----------------------------------------------------------------------------------

    def _begun_obs(self, i: int, seed: int | None) -> NDArray:
        """The first observation of a new episode of row i."""
        try:
            result = self._envs[i].reset(seed=seed)
            actions = self._envs[i].action_space
        except BaseException as error:
            raise self._raised(i, "reset", error) from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._wrong(i, "reset returned", shown(result), RETURNS["reset"])
        self._refuse_other_actions(i, actions, self._action_spaces[i])
        obs = self._checked(i, result[0])
        if not sound(obs):
            got = f"a non-finite observation {obs}"
            if np.isfinite(obs).all():
                got = f"an observation of {worst(obs):g}, whose square float32 cannot hold"
            raise self._wrong(i, "reset starts with", got, "finite numbers")
        return obs

    def _answer(self, i: int, control: NDArray) -> tuple[Any, ...]:
        """What a step of row i returns: obs (checked), reward, terminated, truncated, info."""
        try:
            result = self._envs[i].step(control)
        except BaseException as error:
            raise self._raised(i, "step", error) from error
        if not isinstance(result, (tuple, list)) or len(result) != 5:
            raise self._wrong(i, "step returned", shown(result), RETURNS["step"])
        return self._checked(i, result[0]), *result[1:]

    # ---- reading ---------------------------------------------------------------------------------

    def _checked(self, i: int, obs: Any) -> NDArray:
        """An observation [Do] of numbers, which need not be sound ones."""
        try:
            found = np.asarray(obs)
        except Exception as error:
            raise self._wrong(i, "the observation is", shown(obs), f"an array ({error})") from error
        if found.shape != (self.obs_dim,):
            got = f"shape {found.shape}, but its observation_space says {(self.obs_dim,)}"
            if found.dtype.kind == "O":
                got = f"{shown(obs)}, but its observation_space says shape {(self.obs_dim,)}"
            raise self._wrong(i, "the observation has", got, None)
        if found.dtype.kind not in "fiub":
            got = f"{found.dtype} ({shown(obs)})"
            raise self._wrong(i, "the observation's type is", got, "real numbers")
        return found

    def _reward(self, i: int, value: Any) -> float:
        """The reward of a step, which need not be a sound one."""
        if type(value) is float:
            return value
        return self._asked(i, "reward", value, number(value), "one real number")

    def _is_sound(self, i: int, obs: NDArray, reward: float) -> bool:
        """Whether a step can be learned from; what is wrong with one that cannot is told once."""
        if sound(obs) and abs(reward) <= LARGEST:
            return True
        field, value = ("reward", reward) if sound(obs) else ("observation", worst(obs))
        why = ", whose square float32 cannot hold" if math.isfinite(value) else ""
        text = f"{self._at_row(i)}: the {field} is {value:g}{why}"
        then = "steps that cannot be learned from are cut and not stored (env/bad_obs)"
        once((self.id, field), f"{text}; {then}")
        return False

    def _tell_outside(self, rows: NDArray) -> None:
        """Says once that observations [N, Do] lie outside of the bounds that are declared."""
        found = None if self._declared.silent else self._declared.beyond(rows)
        if found is not None:
            i, j = found
            self._declared.tell(self._at_row(i), j, rows[i, j])

    def _flag(self, i: int, field: str, value: Any) -> bool:
        """An end of an episode: a bool, or one number or array of size one that stands for it."""
        if type(value) is bool:
            return value
        one = number(value)
        return self._asked(i, field, value, None if one is None else truth(value), "True or False")

    def _solved(self, i: int, info: Any) -> bool:
        """Success as a step's info tells it: of an array any entry; nothing said is no success."""
        if type(info) is not dict and not isinstance(info, Mapping):
            raise self._wrong(i, "info is", shown(info), "a dictionary")
        if self._success_key is None:
            self._success_key = families.success_key(info)
            if self._success_key is None:
                return False
        value = info.get(self._success_key, False)
        if type(value) is bool or value is None:
            return bool(value)
        field = f"info[{self._success_key!r}]"
        return self._asked(i, field, value, truth(value), "a flag, or an array of flags")

    def _asked(self, i: int, field: str, value: Any, read: Any, expected: str) -> Any:
        """What was read of a value; EnvError when nothing could be."""
        if read is None:
            raise self._wrong(i, f"the {field} is", shown(value), expected)
        return read

    # ---- what is wrong with an environment: its name, index, seed and step, got and expected ----

    def _at_row(self, i: int) -> str:
        """Where row i is, for a message."""
        counts = self._seeds[i], self._episodes[i], self._elapsed[i]
        return place(self.id, self.first + i, *map(int, counts))

    def _wrong(self, i: int, field: str, got: str, expected: str | None) -> EnvFault:
        """An answer that no environment may give."""
        self._broken = True
        wanted = f", expected {expected}" if expected else ""
        return EnvFault(f"{self._at_row(i)}: {field} {got}{wanted}: correct the environment")

    def _raised(self, i: int, call: str, error: BaseException) -> EnvError:
        """The message for what came out of an environment; raises what is not its own as it is.

        What ours say of an option, a camera that is not there, is no fault of the environment.
        """
        self._broken = True
        if isinstance(error, EnvError):
            return type(error)(f"{self._at_row(i)}: {error}: correct the environment")
        if not own(error):
            raise error
        text = str(error)
        if call == "reset" and isinstance(error, TypeError) and "'seed'" in text:
            got = f"no seed ({told(error)})"
            return self._wrong(i, "reset takes", got, "reset(self, *, seed=None, options=None)")
        if isinstance(error, ValueError) and "values to unpack (expected " in text:
            found = re.search(r"got (\d+)", text)
            count = f"{found[1]} values" if found else "too many values"
            return self._wrong(i, f"{call} returned", count, RETURNS[call])
        return EnvFault(f"{self._at_row(i)}: {call} raised {told(error)}")


def worst(obs: NDArray) -> float:
    """The number of an observation that is farthest from being sound."""
    numbers = np.asarray(obs, np.float64)
    broken = numbers[~np.isfinite(numbers)]
    return float(broken[0] if broken.size else numbers[np.abs(numbers).argmax()])
