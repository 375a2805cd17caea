"""`rheo bench gpu`: environments on a device, alone and with who learns there, beside native ones.

First whether they are right, then how fast. Sides of a row alternate within one process, and every
span waits for the device at both its ends. Native environments have all the machine's cores, and as
many rows as those fill.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rheo.envs.chunk import ChunkEnv
from rheo.envs.mujoco import physics
from rheo.envs.mujoco.native import pool_size
from rheo.envs.mujoco.warp import WarpVector
from rheo.envs.sources import Replay
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv

from .assemble import assemble, fit_statistics
from .config.compose import compose
from .fast import exploring, fast
from .graph import WARM
from .limits import AHEAD, random_actions
from .paired import Goal, Plan, Row, against_limit, alternate, faster, rate, shorter
from .watching import Watcher

log = logging.getLogger("rheo")
LAST = 360.0  # seconds after which nothing new is begun: it ends by itself within eight minutes
COUNTS = {"cuda": (1024, 4096, 16384), "cpu": (16, 64)}
NATIVE = 256  # rows that fill any number of cores
CHUNK = 4
COMPARED = 16  # worlds that are compared with native ones
MIXED = 50  # steps before measuring, so that rows are in different phases
DECISIONS = {"cuda": 32, "cpu": 16, "quick": 4}  # of a rollout
GRAPHS = ("cuda",)  # kinds of devices on which updates can be recorded
WAYS = {  # other ways to update there
    "fast=graph": {"fast": "graph"},
    "fast=graph precision=bf16": {"fast": "graph", "numbers": "bf16"},
}
RATIO = 1 / 16  # updates per frame, off policy
# Of one H200: physics at 16,384 worlds; the others of any number.
FRAMES = {"Hopper-v5": 5e5, "HalfCheetah-v5": 1e6, "Ant-v5": 5e5}
WHOLE, ACTED, NATIVELY = (
    Goal("share", ">=", 0.8), Goal("share", ">=", 0.7), Goal("ratio", ">=", 5.0),
)  # fmt: skip
RECORDED = Goal("ratio", ">=", 4.0)  # on a CPU
EXACT, CLOSE = Goal("ours", "<=", 0.0), Goal("ours", "<=", 1e-4)
ON_POLICY = {"PPO": ("algo=ppo",), "ReinFlow": ("algo=reinflow", "init=scratch")}
OFF_POLICY = {
    "RFM": ("algo=rfm",),
    "DSRL": ("algo=dsrl_sac", "init=scratch", f"horizon={CHUNK}"),
}
LONG = ("env=hopper", "env.threads=0", "steps=1000000000")  # no schedule comes to its end
# a rollout is learned from again and again, always in all its epochs
EVERY_EPOCH = ("algo.learn.kl_stop=1e9", "algo.learn.value_warmup=0")


def rows(plan: Plan) -> Iterator[Row]:
    """All parts, those first that matter most, while there is time."""
    left, start = [], monotonic()
    for name, part in parts(plan):
        if monotonic() - start > LAST:
            left.append(name)
        else:
            yield from part()
    if left:
        log.warning("bench gpu ends by itself after some minutes; left out: %s", ", ".join(left))


def parts(plan: Plan) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """Two tasks and who learns in one of them, before Ant, whose kernels take long to compile."""
    counts = plan.worlds or COUNTS[plan.device.partition(":")[0]]
    tasks = ["Hopper-v5"] if plan.quick else [*FRAMES]
    for position, task in enumerate(tasks):
        if position == 2:
            yield from learners(plan, counts[:1])
        yield f"{task}, right", partial(right, plan, task)
        for count in counts:
            yield f"{task} x {count}", partial(stepping, plan, task, count)
    yield from learners(plan, counts[len(tasks) > 2 :])


def learners(
    plan: Plan, counts: Sequence[int]
) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """Every method at numbers of worlds."""
    for count, name in itertools.product(counts, [*ON_POLICY, *OFF_POLICY]):
        yield f"{name} x {count}", partial(learning, plan, name, count)


# ---- right -------------------------------------------------------------------------------------


def right(plan: Plan, task: str) -> Iterator[Row]:
    """Beginnings, first steps and broken worlds. Of steps the median world, relative to native's.

    Worlds whose foot meets the floor a step earlier are elsewhere soon; Ant's contacts are known to
    differ (docs/reference/warp.md), so that its ten steps have no goal.
    """
    start = monotonic()
    env = warped(plan, task, COMPARED)
    yield Row(f"{task}: made, kernels compiled or found", "s", monotonic() - start)
    if physics.available():
        yield from beside_native(plan, task, env)
    feed = actions_on(env, COMPARED)
    broken = {"qpos": (2, torch.nan), "qvel": (7, 1e12)}
    for name, (world, value) in broken.items():
        env.worlds.state[name][world] = value
    step = env.step(feed[0])
    cut = sorted((~step.valid).nonzero().flatten().tolist())
    wrong = set(cut) ^ {world for world, _ in broken.values()}
    wrong |= set((~step.obs.isfinite().all(1)).nonzero().flatten().tolist())
    yield Row(f"{task}: rows that a broken world spoils", "rows", len(wrong), goals=(EXACT,))
    with Watcher() as watcher:
        for action in feed[:10]:
            env.step(action)
    name = f"{task}: host reads of 10 steps"
    yield Row(name, "reads", len(watcher.reads), goals=(EXACT,))


def beside_native(plan: Plan, task: str, env: WarpVector) -> Iterator[Row]:
    """Differences of the first observation, of one step and of ten from native environments."""
    native = make(task, COMPARED, seed=3, backend="native")
    apart = float((env.reset(3).cpu() - native.reset(3)).abs().max())
    yield Row(f"{task}: difference of beginnings", "", apart, goals=(EXACT,))
    for k, action in enumerate(actions_on(env, COMPARED)[:10], 1):
        ours, theirs = env.step(action).final_obs.cpu(), native.step(action.cpu()).final_obs
        gap = ((ours - theirs).abs().amax(1) / (1 + theirs.abs().amax(1))).median()
        if k in (1, 10):
            goals = (CLOSE,) if k == 1 or not task.startswith("Ant") else ()
            yield Row(f"{task}: difference after {k}", "", float(gap), goals=goals)
    native.close()


def warped(plan: Plan, task: str, count: int) -> WarpVector:
    """Worlds of a task on the plan's device."""
    env = make(task, count, seed=0, backend="warp", device=plan.device)
    assert isinstance(env, WarpVector)
    env.reset(0)
    return env


def actions_on(env: VectorEnv, count: int) -> Tensor:
    """Random actions of 64 steps where an environment is, [64, N, Da]."""
    found = random_actions(np.random.default_rng(0), env.action_dim, count)
    return torch.from_numpy(found).to(env.device or "cpu")


# ---- environments ------------------------------------------------------------------------------


def stepping(plan: Plan, task: str, count: int) -> Iterator[Row]:
    """Frames of whole steps, beside native ones and physics alone; of chunks; memory."""
    env, name = warped(plan, task, count), f"{task} x {count}"
    step, on_cpu = stepped(env), plan.device == "cpu"
    for _ in range(5 if plan.quick else MIXED):
        step()
    sides = {"ours": step, "limit": alone(env, env.worlds.step), "chunks": chunks(env)}
    if on_cpu:
        sides["unrecorded"] = alone(env, env.worlds.unrecorded)
    native, number = natively(task, count), min(count, NATIVE)
    if native is not None:
        sides[hosted(number)] = stepped(native)
    times = alternate(plan, sides, device=plan.device)
    goals = () if on_cpu else (WHOLE, NATIVELY)
    if count == COUNTS["cuda"][-1] and not on_cpu:
        goals += (Goal("limit", ">=", FRAMES[task]),)
    row = Row(f"{name}: whole step", "frames/s", rate(times["ours"], count), goals=goals)
    if native is not None:
        times[hosted(number)] *= count / number
        row = faster(row, times, hosted(number), count)
        native.close()
    yield against_limit(row, times, "frames/s", count, AHEAD * count)
    pair = {"ours": times["chunks"] / CHUNK, "single steps": times["ours"]}
    yield faster(Row(f"{name}: in chunks of {CHUNK}", "frames/s", 0.0), pair, "single steps", count)
    if on_cpu:
        row = Row(f"{name}: recorded physics", "frames/s", 0.0, goals=(RECORDED,))
        pair = {"ours": times["limit"], "unrecorded": times["unrecorded"]}
        yield faster(row, pair, "unrecorded", AHEAD * count)
    yield Row(f"{name}: memory of a world", "kB", env.worlds.bytes / count / 1e3)


def stepped(env: VectorEnv) -> Callable[[], object]:
    """One step of random actions in all environments."""
    feed = itertools.cycle(actions_on(env, env.num_envs))
    env.reset(0)
    return lambda: env.step(next(feed))


def chunks(env: VectorEnv) -> Callable[[], object]:
    """A chunk of random actions in all environments; rows that end in one wait for the others."""
    chunk = ChunkEnv(env, execute=CHUNK, obs_steps=1, gamma=0.99)
    feed = itertools.cycle(actions_on(env, env.num_envs).unflatten(0, (-1, CHUNK)).swapaxes(1, 2))
    chunk.reset(0)
    return lambda: chunk.step(next(feed))


def alone(env: WarpVector, step: Callable[[], None]) -> Callable[[], object]:
    """Physics alone, AHEAD steps from one state: worlds that fall are not begun anew."""
    state = {name: view.clone() for name, view in env.worlds.state.items()}

    def run() -> None:
        for _ in range(AHEAD):
            step()
        for name, view in env.worlds.state.items():
            view.copy_(state[name])
        env.worlds.overflow.zero_()

    return run


def natively(task: str, count: int) -> VectorEnv | None:
    """Native environments on all cores; None where MuJoCo has no batches."""
    if not physics.available():
        return None
    return make(task, min(count, NATIVE), seed=0, backend="native")


def hosted(number: int) -> str:
    """What the other side is."""
    return f"native x {number}, {pool_size(0, number)} threads"


# ---- who learns in them ------------------------------------------------------------------------


class Learner(NamedTuple):
    """A learner and its environments: `act` makes frames, `learn` learns from what is there."""

    act: Callable[[], object]
    learn: Callable[[], object]
    step: Callable[[], object]  # of the environments alone
    frames: int  # of a call of `act`
    updates: float  # calls of `learn` for every one of `act`
    close: Callable[[], None]


def learning(plan: Plan, name: str, count: int) -> Iterator[Row]:
    """Frames of acting, and of acting and learning, beside native environments."""
    ours, number = learner(plan, name, count, "warp"), min(count, NATIVE)
    sides = {"ours": ours.act, "learn": ours.learn, "limit": ours.step}
    native = learner(plan, name, number, "native") if physics.available() else None
    if native is not None:
        sides |= {"native": native.act, "learn natively": native.learn}
    ways = WAYS if plan.device.partition(":")[0] in GRAPHS else {}
    for way, how in ways.items():
        sides[way] = recorded_update(plan._replace(**how), name, count)
    times = alternate(plan, sides, device=plan.device)
    text, goals = f"{name}, Hopper x {count}", () if plan.device == "cpu" else (ACTED,)
    acted = Row(f"{text}: acting", "frames/s", rate(times["ours"], ours.frames), goals=goals)
    whole = times["ours"] + ours.updates * times["learn"]
    both = Row(f"{text}: acting and learning", "frames/s", rate(whole, ours.frames))
    if native is not None:
        side, scale = hosted(number), ours.frames / native.frames
        slow = times["native"] + native.updates * times["learn natively"]
        pair = {"ours": times["ours"], side: scale * times["native"]}
        acted = faster(acted, pair, side, ours.frames)
        both = faster(both, {"ours": whole, side: scale * slow}, side, ours.frames)
        native.close()
    yield against_limit(acted, times, "frames/s", ours.frames, count)
    yield both
    yield Row(f"{text}: an update", "ms", 1e3 * float(np.median(times["learn"])))
    for way in ways:
        pair = {"ours": times[way], "run": times["learn"]}
        yield shorter(Row(f"{text}: an update, {way}", "ms", 0.0), pair, "run", 1e3)
    for what, side in {"acting": ours.act, "an update": ours.learn}.items():
        with Watcher() as watcher:
            side()
        goals = (Goal("ours", "<=", 1.0),) if what == "acting" else ()
        yield Row(f"{text}: host reads of {what}", "reads", len(watcher.reads), goals=goals)
    ours.close()


def recorded_update(plan: Plan, name: str, count: int) -> Callable[[], object]:
    """A learner's update where all its kinds are recorded."""
    learn = learner(plan, name, count, "warp").learn
    for _ in range(2 * (WARM + 1)):  # those of a method come in turn
        learn()
    return learn


def learner(plan: Plan, name: str, count: int, backend: str) -> Learner:
    """A method on Hopper as it ships, without a base, and statistics as of normal data.

    On policy a call of `act` is a rollout and one of `learn` all its epochs; off policy a decision
    and a batch, of which there is one for every 1 / RATIO frames.
    """
    kind = "quick" if plan.quick else plan.device.partition(":")[0]
    where = (f"env.backend={backend}", f"env.num_envs={count}", f"device={plan.device}")
    own = ("source.warmup=1",)
    if name in ON_POLICY:
        own = (f"source.decisions={DECISIONS[kind]}", *EVERY_EPOCH)
    cfg = compose([*{**ON_POLICY, **OFF_POLICY}[name], *LONG, *where, *own])
    algo, source, sizes, device = assemble(cfg)
    data = (torch.randn(1000, size, device=device) for size in sizes[:2])
    fit_statistics(algo, *data)
    update, env = fast(algo, plan.fast or cfg["fast"], plan.numbers), source.env.env
    explore = exploring(algo, plan.numbers, name in ON_POLICY)
    source.next(explore)
    if isinstance(source, Replay):
        frames = count * source.env.execute
        act = partial(source.collect, explore)
        learn = lambda: update(source.buffer.sample(source.batch_size, source.generator))  # noqa: E731
        return Learner(act, learn, stepped(env), frames, RATIO * frames, env.close)
    frames = count * source.decisions
    act = partial(source.next, explore)
    return Learner(act, lambda: update(source.store), stepped(env), frames, 1.0, env.close)
