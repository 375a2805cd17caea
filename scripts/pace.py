"""`rheo serve RUN check=true`: how fast answers come, and whether a loop at a steady rate has them.

The server answers itself, on this machine as it is now: figures of another moment are other ones.
"""

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheo.envs.pixels import pixels

from .client import Chunks, Client

if TYPE_CHECKING:
    from .serve import Server

CALLS, WARM = 1000, 20
SECONDS = 4.0  # of each loop
LATE = (0, 20, 60, 120)  # milliseconds that answers are held back
FOREVER = 1 << 30


class Loop(NamedTuple):
    """What a loop at a steady rate met."""

    steps: int
    misses: int  # steps without a plan
    delay: int  # steps that the slowest plan took to arrive
    late: float  # share of steps that were themselves not done in time


def check(server: "Server", url: str) -> int:
    """Prints milliseconds of an answer, and misses of loops with delays."""
    hz = server.asked.hz
    with Client(url, server.asked.token) as client:
        obs = observations(server)
        for what in ("act", "chunk"):
            p50, p99 = latency(client, what, obs)
            print(f"{what}: {p50:.2f} ms (median), {p99:.2f} ms (99 of {CALLS // 100}00)")
        if client.about["plan"]["steps"] < 2:
            print("plans have one step: nothing to execute while the next one is made")
            return 0
        for extra in LATE:
            server.delay = extra / 1000
            found = loop(client, obs, hz)
            print(
                f"{hz:g} Hz, answers {extra} ms late: {found.misses} of {found.steps} steps had no "
                f"plan, the slowest took {found.delay} steps; {found.late:.1%} of steps were late"
            )
    return 0


def observations(server: "Server") -> NDArray:
    """Random observations [64, Do], or parts with images of noise; none of the environment's."""
    policy, draw = server.policy, np.random.default_rng(0)
    shown: Any = draw.normal(size=(64, sum(policy.obs_parts.values())))
    if not policy.images:
        return shown
    width = pixels(policy.images)
    shown[:, -width:] = draw.integers(0, 1 << 24, (64, width))
    return shown


def latency(client: Client, what: str, obs: Any) -> tuple[float, float]:
    """Milliseconds of an answer: the median, and what 99 of 100 stay below."""
    times = []
    for i in range(WARM + CALLS):
        start = time.perf_counter()
        client.answer(client.ask(what, {"obs": obs[i % len(obs)]}))
        times.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times[WARM:], [50, 99])
    return float(p50), float(p99)


def loop(client: Client, obs: Any, hz: float) -> Loop:
    """A loop of SECONDS at a rate, which executes one action a step."""
    client.reset()
    chunks, late, steps = Chunks(client, hold="neutral", stop=FOREVER), 0, int(SECONDS * hz)
    slowest, start = 0, 0.0
    for i in range(steps + 1):
        chunks.act(obs[i % len(obs)])
        if i == 0:  # waits for the first plan
            start = time.perf_counter()
            continue
        slowest = max(slowest, *chunks.delays)
        rest = start + i / hz - time.perf_counter()
        late += rest < 0
        time.sleep(max(rest, 0))
    return Loop(steps, chunks.misses, slowest, late / steps)
