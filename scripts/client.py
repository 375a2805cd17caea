"""Who asks a policy of `rheo serve`: numpy, websockets and safetensors, no torch and nothing of
Rheo, so that this file can be copied to where a robot is.

with Client("ws://127.0.0.1:8570") as policy:
    action = policy.act(obs)

A frame is a safetensors file: arrays, and words {key: text} as its metadata.
"""

import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from safetensors.numpy import load, save
    from websockets.sync.client import connect
except ImportError as error:
    raise ImportError(f"{error}: pip install websockets safetensors ('rheo-rl[serve]')") from error

HEAD = 8  # bytes that tell the length of a frame's description
LARGEST = 1 << 26  # bytes of an answer
Arrays = dict[str, NDArray]


class Refused(ValueError):
    """The server's answer to what it cannot do; the connection goes on. code: see docs/serve.md."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Stopped(RuntimeError):
    """No plan came in time, for as many steps as are borne: stop the robot."""


def packed(words: Mapping[str, str], arrays: Mapping[str, NDArray]) -> bytes:
    """A frame."""
    return save({k: np.ascontiguousarray(x) for k, x in arrays.items()}, metadata=dict(words))


def unpacked(frame: bytes) -> tuple[dict[str, str], Arrays]:
    """Words and arrays of a frame. Raises what `load` raises for other bytes."""
    arrays = load(frame)
    end = HEAD + int.from_bytes(frame[:HEAD], "little")
    return json.loads(frame[HEAD:end]).get("__metadata__", {}), arrays


class Client:
    """A policy that is elsewhere. One observation, or those of N episodes side by side.

    about: what the server says of it. token: the server's, where it has one. deadline: seconds that
    an answer is waited for; None: as long as it takes. begin: seed, row, execute as in `rheo.load`.

    Raises Refused, TimeoutError, and what `websockets` raises for a connection that broke.
    """

    def __init__(
        self, url: str, token: str | None = None, deadline: float | None = None, **begin: int
    ) -> None:
        known = {} if token is None else {"Authorization": f"Bearer {token}"}
        more: dict[str, Any] = {"compression": None, "max_size": LARGEST, "proxy": None}
        self.wire = connect(url, additional_headers=known, **more).__enter__()
        self.deadline, self.asked = deadline, 0
        words = {key: str(value) for key, value in begin.items()}
        try:
            self.about = json.loads(self.answer(self.ask("begin", {}, **words))[0]["about"])
        except Exception:
            self.wire.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()

    def act(self, obs: Any) -> NDArray:
        """The action [Da] of an observation [Do], or [N, Da]: an array, or a mapping of parts."""
        return self.answer(self.ask("act", named(obs)))[1]["action"]

    def reset(self, rows: Any = None) -> None:
        """New episodes: of all rows, or of those with these numbers."""
        chosen = {} if rows is None else {"rows": np.asarray(rows, np.int64).reshape(-1)}
        self.answer(self.ask("reset", chosen))

    def ask(self, what: str, arrays: Mapping[str, NDArray] | None = None, **words: str) -> int:
        """Sends a request without waiting for its answer; its number."""
        self.asked += 1
        self.wire.send(packed({"do": what, "id": str(self.asked), **words}, arrays or {}))
        return self.asked

    def answer(self, number: int, within: float | None = None) -> tuple[dict[str, str], Arrays]:
        """The answer to a request, `within` seconds (else the deadline). Others are passed over."""
        within = self.deadline if within is None else within
        end = None if within is None else time.monotonic() + within
        while True:
            frame = self.wire.recv(None if end is None else max(end - time.monotonic(), 0))
            words, arrays = unpacked(frame if isinstance(frame, bytes) else frame.encode())
            if "error" in words:  # of this request, or of one whose answer nobody waits for
                raise Refused(words["error"], words["code"])
            if words.get("id") == str(number):
                return words, arrays


def named(obs: Any) -> Arrays:
    """An observation as arrays of a frame: `obs` as a whole, or `obs.PART`."""
    if isinstance(obs, Mapping):
        return {f"obs.{key}": np.asarray(value) for key, value in obs.items()}
    return {"obs": np.asarray(obs)}


class Chunks:
    """One action a step, at a steady rate, while the next plan is made: real-time chunking
    (arXiv:2506.07339). `act` waits for an episode's first plan only.

    With `every` steps of a plan executed the next one is asked for; it goes on from the steps that
    are still to come, of which as many are frozen as the last plans took to arrive. Where a plan is
    used up before the next one is there, the last action is repeated (hold="last") or nothing is
    done (hold="neutral", 0 within the bounds); after `stop` such steps in a row Stopped is raised.

    hold: None: as the server says. misses: steps without a plan. delays: of the last plans, in
    steps. Of one observation at a time.
    """

    def __init__(
        self, client: Client, every: int | None = None, hold: str | None = None, stop: int = 10
    ) -> None:
        about = client.about
        self.client, self.stop, self.hold = client, stop, hold or about["hold"]
        self.every = every or max(about["plan"]["steps"] // 2, 1)
        if self.hold not in ("last", "neutral"):
            raise ValueError('say what is safe without a plan: hold="last" or hold="neutral"')
        if not 1 <= self.every < about["plan"]["steps"]:
            raise ValueError(f"every={self.every}: plans have {about['plan']['steps']} steps")
        self.neutral = np.clip(0.0, about["action"]["low"], about["action"]["high"])
        self.sees = about["observation"]["steps"] > 1  # every observation, for its history
        self.misses, self.delays = 0, deque([1], maxlen=8)
        self.begin()

    def begin(self) -> None:
        """No plan yet."""
        self.plan: NDArray = np.zeros((0, len(self.neutral)))
        self.at, self.held, self.last = 0, 0, self.neutral
        self.waiting: int | None = None  # number of the request under way
        self.since = 0  # steps since its observation

    def reset(self) -> None:
        """A new episode."""
        self.client.reset()
        self.begin()

    def act(self, obs: Any) -> NDArray:
        """The action [Da] of this step. Raises Stopped, and what `Client` raises."""
        self.look(0)
        if self.waiting is None and (not len(self.plan) or self.at >= self.every):
            self.request(obs)
        elif self.sees:
            self.client.ask("see", named(obs))
        if not len(self.plan):
            self.look(self.client.deadline)
        self.since += 1
        if self.at < len(self.plan):
            self.last, self.held = self.plan[self.at], 0
            self.at += 1
            return self.last
        self.misses, self.held = self.misses + 1, self.held + 1
        if self.held > self.stop:
            raise Stopped(f"{self.held} steps without a plan, {self.since} since it was asked for")
        return self.last if self.hold == "last" else self.neutral

    def request(self, obs: Any) -> None:
        """Asks for the next plan."""
        left = self.plan[self.at :]
        frozen = min(max(self.delays), len(left))
        arrays = named(obs) | ({"left": left} if len(left) else {})
        self.waiting = self.client.ask("chunk", arrays, frozen=str(frozen))
        self.since = 0

    def look(self, within: float | None) -> None:
        """Takes the next plan where it is there: its first step was that of its observation."""
        if self.waiting is None:
            return
        try:
            _, arrays = self.client.answer(self.waiting, within)
        except TimeoutError:
            if within == 0:
                return
            raise
        except Refused:
            self.waiting = None
            raise
        self.plan, self.at, self.waiting = arrays["plan"], self.since, None
        self.delays.append(self.since)
