"""One connection of `rheo serve`: frames in, frames out, and the episodes that belong to it."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from rheo.errors import nearest

from .client import Refused, packed, unpacked
from .episodes import Episodes

log = logging.getLogger("rheo")
LARGEST = (1 << 63) - 1  # of a number in a frame
WHOLE, PART = "obs", "obs."  # names of an observation's arrays
Arrays = Mapping[str, NDArray]
Answer = tuple[dict[str, str], dict[str, NDArray]]


class Session:
    """Episodes of one client, with their own history, plans and noise.

    policy: whose weights act. about: what a client is told. row: of the policy's noise; most: how
    many observations at once. Nothing of what a client sends raises: the answer says what is wrong.
    """

    def __init__(self, policy: Episodes, about: Mapping[str, Any], row: int, most: int) -> None:
        self.base, self.about, self.row, self.most = policy, about, row, most
        self.policy = policy.sibling(policy.seed, row)
        self.does: dict[str, Callable[..., Answer | None]] = {
            **{"begin": self.begin, "reset": self.reset, "act": self.act},
            **{"see": self.see, "chunk": self.chunk},
        }

    def answer(self, frame: bytes | str) -> bytes | None:
        """The answer to a frame; None: there is none."""
        words: dict[str, str] = {}
        try:
            words, arrays = opened(frame)
            what = words.get("do", "")
            if what not in self.does:
                raise Refused(f"do={what!r:.40}{nearest(what[:40], self.does)}", "word")
            with np.errstate(all="ignore"):
                done = self.does[what](words, arrays)
            if done is None:
                return None
            told, found = done
        except Refused as error:
            told, found = {"error": str(error), "code": error.code}, {}
        except ValueError as error:  # the policy's: it says what it reads
            told, found = {"error": str(error), "code": "observation"}, {}
        except Exception as error:
            log.exception("a request was not answered; please report it")
            told, found = {"error": f"{type(error).__name__}: {error}", "code": "server"}, {}
        return packed(told | {"id": words.get("id", "")[:40]}, found)

    def begin(self, words: Mapping[str, str], arrays: Arrays) -> Answer:
        """Another seed, row or number of executed steps; what is to know of the policy."""
        self.row = number(words, "row", self.row)
        seed = number(words, "seed", self.policy.seed)
        execute = number(words, "execute", self.base.execute)
        try:
            self.policy = self.base.sibling(seed, self.row, execute)
        except ValueError as error:
            raise Refused(str(error), "word") from error
        own = {"seed": seed, "row": self.row}
        plan = self.about["plan"] | {"executed": execute}
        return {"about": json.dumps({**self.about, **own, "plan": plan})}, {}

    def reset(self, words: Mapping[str, str], arrays: Arrays) -> Answer:
        """New episodes: of all rows, or of those in `rows`."""
        rows, count = arrays.get("rows"), len(self.policy.begun)
        if rows is None:
            self.policy.reset()
            return {}, {}
        if rows.dtype.kind not in "iu" or rows.ndim != 1 or ((rows < 0) | (rows >= count)).any():
            raise Refused(f"rows: whole numbers below {count} are needed", "word")
        self.policy.reset(rows.astype(np.int64))
        return {}, {}

    def act(self, words: Mapping[str, str], arrays: Arrays) -> Answer:
        """The next action of every row."""
        now, single = self.rows(arrays)
        self.policy.see(now)
        return {}, {"action": sound(self.policy.step(), single)}

    def see(self, words: Mapping[str, str], arrays: Arrays) -> None:
        """An observation for the history."""
        self.policy.see(self.rows(arrays)[0])

    def chunk(self, words: Mapping[str, str], arrays: Arrays) -> Answer:
        """A plan, which goes on from `left` where there is one."""
        frozen, left = number(words, "frozen", 0), arrays.get("left")
        now, single = self.rows(arrays)
        if left is not None:
            if left.dtype.kind not in "fiu" or not np.isfinite(left).all():
                raise Refused("left: finite numbers are needed", "word")
            left = left.astype(np.float64)
            left = left[None] if left.ndim == 2 else left
            self.policy.refuse_left(left, frozen, len(now))
        self.policy.see(now)
        plan, goes_on = self.policy.chunk(left, frozen)
        return {"continued": str(goes_on).lower()}, {"plan": sound(plan, single)}

    def rows(self, arrays: Arrays) -> tuple[NDArray, bool]:
        """Observations [N, Do], and whether it was a single one. Raises ValueError."""
        given = {name: x for name, x in arrays.items() if name == WHOLE or name.startswith(PART)}
        for name, x in given.items():
            if x.dtype.kind not in "fiub":
                raise Refused(f"{name}: {x.dtype} are no numbers to observe", "observation")
        if not given or WHOLE in given and len(given) > 1:
            raise Refused(
                f"an observation is the array obs, or its parts {PART}NAME: "
                f"{', '.join(PART + key for key in self.policy.obs_parts)}", "observation"
            )  # fmt: skip
        whole = given.get(WHOLE)
        parts = {name.removeprefix(PART): x for name, x in given.items()}
        now, single, _ = self.policy.rows(parts if whole is None else whole)
        if not 0 < len(now) <= self.most:
            raise Refused(f"{len(now)} observations at once; 1 to {self.most}", "observation")
        bad = np.flatnonzero(~np.isfinite(now).all(0))
        if len(bad):
            name, place = located(self.policy.obs_parts, int(bad[0]))
            raise Refused(f"{name}: number {place} is not finite", "observation")
        return now, single


def opened(frame: bytes | str) -> tuple[dict[str, str], dict[str, NDArray]]:
    """Words and arrays of a frame. Raises Refused."""
    if isinstance(frame, str):
        raise Refused("a text message; frames are binary, as safetensors writes files", "frame")
    try:
        return unpacked(frame)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Refused(f"no frame: {type(error).__name__}: {str(error)[:100]}", "frame") from error


def number(words: Mapping[str, str], key: str, default: int) -> int:
    """A whole number among words. Raises Refused."""
    text = words.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= LARGEST):
        raise Refused(f"{key}={text!r:.40}: a whole number is needed", "word")
    return int(text)


def located(parts: Mapping[str, int], place: int) -> tuple[str, int]:
    """The part that a number of an observation belongs to, and its place there."""
    for name, width in parts.items():
        if place < width:
            return name, place
        place -= width
    raise IndexError(place)


def sound(action: NDArray, single: bool) -> NDArray:
    """Actions as they are sent. Raises Refused for what must not reach a robot."""
    if not np.isfinite(action).all():
        raise Refused("the policy's action is not finite", "policy")
    return action[0] if single else action
