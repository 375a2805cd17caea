"""Environments in worker processes: the numbers of one process, and what becomes of failures."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs import suites
from rheo.envs.chunk import ChunkEnv
from rheo.envs.guard import NonFiniteAction
from rheo.envs.rollout import evaluate
from rheo.envs.suites import crew, make, side_by_side
from rheo.envs.workers import Workers
from rheo.errors import EnvError
from rheo.scripts.hosting import taken

FRAGILE = "fragile:Fragile-v0"
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the library says meanwhile, whether or not a command has set its logger up before."""
    texts: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger = logging.getLogger("rheo")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield texts
    logger.removeHandler(handler)
    logger.setLevel(level)


def actions(env: Any, *lead: int, seed: int = 0) -> torch.Tensor:
    """Random actions [..., N, Da]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand((*lead, env.num_envs, env.action_dim), generator=generator) - 1


def same(one: Any, two: Any) -> bool:
    """Whether two records of tensors are equal to the last bit; None is only equal to None."""
    return all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody waits for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(pids: list[int]) -> None:
    limit = time.monotonic() + 60
    while not all(map(gone, pids)):
        assert time.monotonic() < limit, "processes are left"
        time.sleep(0.05)


def test_a_worker_that_nobody_asks_anything_sleeps_and_still_answers() -> None:
    loop, shared = make(FRAGILE, 2, seed=0), make(FRAGILE, 2, seed=0, workers=2)
    assert isinstance(shared, Workers) and torch.equal(loop.reset(), shared.reset())
    before = taken(shared.pids)
    time.sleep(1.0)
    assert taken(shared.pids) - before < 0.2
    action = actions(loop)
    assert same(loop.step(action), shared.step(action))
    shared.close()


# ---- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_any_number_of_workers_gives_the_numbers_of_the_loop(workers: int) -> None:
    options: dict[str, Any] = {"seed": 3, "dtype": torch.float64, "nan_at": 5}
    loop = make(FRAGILE, 5, **options)
    shared = make(FRAGILE, 5, workers=workers, **options)
    assert isinstance(shared, Workers) and len(shared.pids) == workers
    assert torch.equal(loop.reset(), shared.reset())
    masks = torch.Generator().manual_seed(1)
    for k, action in enumerate(actions(loop, 60)):
        active = None if k % 4 == 0 else torch.rand(5, generator=masks) < 0.7
        assert same(loop.step(action, active), shared.step(action, active))
        if k == 40:  # generators go on, and a seed begins anew
            assert torch.equal(loop.reset(), shared.reset())
        if k == 50:
            assert torch.equal(loop.reset(11), shared.reset(11))
    assert loop.counters["bad_obs"] > 3
    assert {**loop.counters, "restarts": 0} == shared.counters
    shared.close()


@pytest.mark.parametrize(("workers", "obs_steps"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_whole_chunks_in_the_workers_are_those_of_the_loop(workers: int, obs_steps: int) -> None:
    made = [make(FRAGILE, 4, seed=3, nan_at=7, execute=4, workers=count) for count in (0, workers)]
    assert made[1].ahead(actions(made[1], 5).movedim(0, 1)) is None  # longer than was said
    loop, shared = (ChunkEnv(env, execute=4, obs_steps=obs_steps, gamma=0.9) for env in made)
    assert torch.equal(loop.reset(3), shared.reset(3))
    masks = torch.Generator().manual_seed(1)
    for k, action in enumerate(actions(loop, 30, 4).movedim(1, 2)):
        active = None if k % 3 == 0 else torch.rand(4, generator=masks) < 0.7
        assert same(loop.step(action, active), shared.step(action, active))
    shared.close()


def test_steps_of_a_chunk_are_those_of_the_vector_contract() -> None:
    loop = make(FRAGILE, 3, seed=0)
    shared = make(FRAGILE, 3, seed=0, execute=6, workers=2)
    for env in (loop, shared):
        env.reset()
    action = actions(loop, 6)
    steps = shared.ahead(action.movedim(0, 1), torch.tensor([True, True, False]))
    assert steps is not None
    active = torch.tensor([True, True, False])
    for k, step in enumerate(steps):
        out = loop.step(action[k], active)
        assert same(out, step)
        active = active & ~(out.terminated | out.truncated)
    assert len(steps) == 6 or not active.any()
    shared.close()


def test_mujoco_in_workers_is_mujoco_in_the_loop() -> None:
    options: dict[str, Any] = {"backend": "gymnasium", "seed": 4, "max_episode_steps": 9}
    loop = make("Hopper-v5", 3, **options)
    shared = make("Hopper-v5", 3, workers=2, **options)
    assert (shared.max_steps, shared.obs_parts, shared.obs_dim) == (9, loop.obs_parts, 11)
    assert torch.equal(loop.reset(), shared.reset())
    assert all(same(loop.step(action), shared.step(action)) for action in actions(loop, 25))
    shared.close()


@pytest.mark.parametrize(
    "task", ["cube-single-play-singletask-v0", "robosuite/Lift-v0", "metaworld/reach-v3"]
)
def test_manipulation_in_workers_is_manipulation_in_the_loop(task: str) -> None:
    try:
        loop = make(task, 2, seed=4, max_episode_steps=6)
    except EnvError:
        pytest.skip("of the other set of packages")
    shared = make(task, 2, seed=4, workers=2, max_episode_steps=6)
    assert torch.equal(loop.reset(), shared.reset())
    told = actions(loop, 9)
    assert all(same(loop.step(action), shared.step(action)) for action in told)
    state = loop.state_dict()  # in the middle of second episodes
    begun, other = loop.load_state_dict(state), shared.load_state_dict(state)
    assert same([begun], [other])  # of the cube, whose state cannot be saved, new ones
    assert all(same(loop.step(action), shared.step(action)) for action in told)
    loop.close()
    shared.close()


@pytest.mark.parametrize("flushed", [False, True])
def test_small_numbers_are_treated_as_in_the_learner(flushed: bool) -> None:
    torch.set_flush_denormal(flushed)
    shared = make(FRAGILE, 2, workers=1, dtype=torch.float64)
    assert (shared.reset(0)[:, 3].numpy().view(np.int64) == 0).all() == flushed
    shared.close()


def test_an_action_that_is_not_finite_is_refused_at_its_step() -> None:
    shared = ChunkEnv(make(FRAGILE, 2, workers=2, execute=3), execute=3, obs_steps=1, gamma=1)
    shared.reset(0)
    action = torch.zeros(2, 3, 2)
    action[1, 2] = torch.inf
    with pytest.raises(NonFiniteAction, match="environment 1 at step 3"):
        shared.step(action)
    shared.close()


def test_an_evaluation_in_fewer_environments_or_workers_has_the_same_episodes() -> None:
    def chunks(count: int, workers: int = 0) -> ChunkEnv:
        env = make(FRAGILE, count, workers=workers, execute=2)
        return ChunkEnv(env, execute=2, obs_steps=1, gamma=1)

    def noisy(obs: torch.Tensor, generator: Any) -> torch.Tensor:
        return (generator.normal((len(obs), 2, 2)) + obs[:, None, :2]).clamp(-1, 1)

    whole = evaluate(chunks(7), noisy, 17, seed=5)
    assert [row.seed for row in whole[:7]] == list(range(5, 12))
    for count, workers in ((7, 2), (3, 0), (3, 3), (1, 0)):
        env = chunks(count, workers)
        assert evaluate(env, noisy, 17, seed=5, rows=7) == whole
        env.close()


class Counted(ChunkEnv):
    """Counts the frames that are stepped."""

    frames = 0

    def step(self, action: torch.Tensor, active: torch.Tensor | None = None) -> Any:
        out = super().step(action, active)
        self.frames += int(out.frames.sum())
        return out


@pytest.mark.parametrize("backend", ["gymnasium", "auto"])
def test_an_evaluation_steps_no_row_that_owes_nothing(backend: str) -> None:
    env = Counted(make("InvertedPendulum-v5", 4, backend=backend), execute=2, obs_steps=1, gamma=1)

    def push(obs: torch.Tensor, generator: Any) -> torch.Tensor:
        return 0.3 * generator.normal((len(obs), 2, 1)).clamp(-1, 1)

    rows = evaluate(env, push, 6, seed=0)
    assert len({row.length for row in rows}) > 2
    assert env.frames == sum(row.length for row in rows)


# ---- state ---------------------------------------------------------------------------------------


def gone_on(env: Any, told: torch.Tensor) -> list[Any]:
    return [env.step(action) for action in told]


@pytest.mark.parametrize("task", [FRAGILE, "Hopper-v5"])
@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 0), (0, 3), (3, 1)])
def test_a_state_goes_on_with_any_number_of_workers(task: str, before: int, after: int) -> None:
    options: dict[str, Any] = {"backend": "gymnasium", "max_episode_steps": 12}
    first = make(task, 3, seed=4, workers=before, **options)
    first.reset()
    told = actions(first, 40)
    gone_on(first, told[:18])
    state = first.state_dict()
    expected = gone_on(first, told[18:])
    second = make(task, 3, seed=99, workers=after, **options)
    second.reset()
    assert second.load_state_dict(state) is None
    assert all(same(a, b) for a, b in zip(expected, gone_on(second, told[18:]), strict=True))
    first.close()
    second.close()


def test_where_a_state_cannot_be_kept_new_episodes_are_the_loops(said: list[str]) -> None:
    loop, shared = (make("Pendulum-v1", 3, seed=4, workers=count) for count in (0, 2))
    for env in (loop, shared):
        env.reset()
    for env in (loop, shared):
        gone_on(env, actions(env, 5))
    one, two = loop.state_dict(), shared.state_dict()
    begun = loop.load_state_dict(one)
    said.clear()
    other = shared.load_state_dict(two)
    assert begun is not None and other is not None and torch.equal(begun, other)
    assert sorted(text.partition("(environment")[2] for text in said) == [" 2)", "s 0 to 1)"]
    shared.close()


# ---- failures ------------------------------------------------------------------------------------

CAUSES = {
    "die": "step 4: its process was ended by SIGKILL (out of memory?)",
    "exit": "step 4: its process ended with exit code 7",
    "hang": "step 4: no answer for 4 s (env.step_timeout)",
    "raise": "step 4: step raised ValueError: the gripper is stuck (fragile.py, line",
}


@pytest.mark.parametrize("execute", [1, 3])
@pytest.mark.parametrize("fault", CAUSES)
def test_a_worker_that_fails_is_named_cut_and_replaced(
    fault: str, execute: int, said: list[str]
) -> None:
    seed = next(s for s in range(99) if length_of(s + 1) > 5)
    options: dict[str, Any] = {"fault": fault, "at": 4, "bad": seed + 1, "execute": execute}
    made = make(FRAGILE, 4, seed=seed, workers=2, step_timeout=4.0, **options)
    assert isinstance(made, Workers)
    env = ChunkEnv(made, execute=execute, obs_steps=1, gamma=0.9)
    loop = ChunkEnv(make(FRAGILE, 4, seed=seed), execute=execute, obs_steps=1, gamma=0.9)
    env.reset()
    loop.reset()
    before, told = made.pids, actions(env, 12, execute).movedim(1, 2)
    for k, action in enumerate(told):
        out, other = env.step(action), loop.step(action)
        cut = k == 3 // execute
        assert same([x[2:] for x in out[:10]], [x[2:] for x in other[:10]])  # another worker's rows
        assert (~out.valid).tolist() == [cut, cut, False, False]
        if cut:
            assert out.truncated[:2].all() and not out.terminated[:2].any()
            assert out.reward[:2].tolist() == [0, 0] and torch.isfinite(out.next_obs).all()
            assert (out.obs[:2, 2] == 0).all()  # the first of new episodes
    assert made.counters["restarts"] == 1
    (text,) = [text for text in said if "new process" in text]
    where = f"{FRAGILE}, environment 1 (seed {seed + 1}, episode 1)"
    assert text.startswith(f"{where}, {CAUSES[fault]}")
    assert "; environments 0 to 1: new episodes in a new process (restart 1 of" in text
    after = made.pids
    assert gone(before[0]) and after[1] == before[1] and after[0] != before[0]
    env.close()
    wait_until_gone(after)


def length_of(seed: int) -> int:
    """How many steps the first episode of a seed takes."""
    env: Any = gymnasium.make(FRAGILE).unwrapped
    env.reset(seed=seed)
    return env.length


def test_what_begins_after_a_restart_follows_from_the_seed() -> None:
    seen = []
    for _ in range(2):
        env = make(FRAGILE, 2, seed=6, workers=1, fault="exit", at=2, bad=6)
        env.reset()
        seen.append(torch.stack([step.obs for step in gone_on(env, actions(env, 9))]))
        assert env.counters["restarts"] == 1
        env.close()
    assert torch.equal(*seen)


def test_after_so_many_restarts_it_is_an_error_and_the_state_begins_anew() -> None:
    env = make(FRAGILE, 2, seed=0, workers=2, restarts=2, fault="exit", at=3)
    env.reset()
    gone_on(env, told := actions(env, 2))
    with pytest.raises(EnvError, match=r"exit code 7; env.restarts=2: no worker is started again"):
        gone_on(env, actions(env, 20))
    assert env.counters["restarts"] == 2
    state = env.state_dict()
    other = make(FRAGILE, 2, seed=1)
    other.reset()
    assert other.load_state_dict(state) is not None
    with pytest.raises(EnvError, match="its process is gone"):
        gone_on(env, told)
    env.close()


@pytest.mark.parametrize(
    ("fault", "text"), [("raise", "ValueError: the gripper"), ("exit", "exit code 7")]
)
def test_one_that_fails_at_its_first_step_is_no_case_for_a_restart(fault: str, text: str) -> None:
    env = make(FRAGILE, 2, seed=0, workers=1, fault=fault, at=1)
    env.reset()
    with pytest.raises(EnvError, match=rf"environment 0 \(seed 0, episode 1\), step 1: .*{text}"):
        env.step(torch.zeros(2, 2))
    env.close()


def test_a_worker_that_dies_before_a_reset_begins_at_the_seeds_asked_for_or_its_own() -> None:
    loop, begun = make(FRAGILE, 3), []
    for seed in (None, None, 9):
        env = make(FRAGILE, 3, seed=4, workers=2)
        assert isinstance(env, Workers)
        env.reset()
        env.step(torch.zeros(3, 2))
        os.kill(env.pids[0], signal.SIGKILL)
        begun.append(env.reset(seed))
        assert env.counters["restarts"] == 1 and env.step(torch.zeros(3, 2)).valid.all()
        env.close()
    assert torch.equal(begun[0], begun[1])  # not what no seed at all would give
    assert torch.equal(begun[2], loop.reset(9))


def test_a_worker_that_dies_while_its_state_is_asked_for_is_cut_at_the_next_step() -> None:
    env = make(FRAGILE, 4, seed=0, workers=2)
    assert isinstance(env, Workers)
    env.reset()
    gone_on(env, actions(env, 2))
    os.kill(env.pids[1], signal.SIGKILL)
    state = env.state_dict()
    assert not state["exact"] and state["begun"] == []
    step = env.step(torch.zeros(4, 2))
    assert step.valid.tolist() == [True, True, False, False]
    assert step.truncated.tolist()[2:] == [True, True]
    assert env.step(torch.zeros(4, 2)).valid.all()
    env.close()


# ---- what cannot be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"id": "fragile:Fragil-v0"}, "cannot be made: .*Fragil"),
        ({"id": FRAGILE, "fult": 1}, "refuses its options"),
        ({"id": "Nothing-v0"}, "unknown environment 'Nothing-v0'|cannot be made"),
        ({"id": "RheoLambda-v0"}, "register it by the text 'module:Class', or set env.workers=0"),
    ],
)
def test_what_cannot_be_made_in_a_worker_is_a_message(given: dict[str, Any], text: str) -> None:
    if "RheoLambda-v0" not in gymnasium.registry:
        gymnasium.register("RheoLambda-v0", lambda: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EnvError, match=text):
        make(num_envs=2, workers=2, **given)


def test_one_that_this_process_alone_has_registered_is_known_to_the_workers() -> None:
    if "RheoOther-v0" not in gymnasium.registry:
        gymnasium.register("RheoOther-v0", "fragile:Fragile", max_episode_steps=4)
    env = make("RheoOther-v0", 2, workers=1)
    assert env.max_steps == 4
    assert torch.equal(env.reset(5), make("RheoOther-v0", 2).reset(5))
    env.close()


def test_workers_of_a_batched_backend_are_refused() -> None:
    if suites.choose("Hopper-v5", "auto", {}) != "native":
        pytest.skip("mujoco.batch came with 3.17")
    with pytest.raises(EnvError, match="env.workers=2: Hopper-v5 .*set env.backend=gymnasium"):
        make("Hopper-v5", 2, workers=2)
    assert make("Hopper-v5", 2, workers="auto").backend == "native"


def test_auto_takes_processes_where_a_step_costs_more_than_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suites, "cores", lambda: 4)
    monkeypatch.setattr(suites, "available", lambda: 1e11)
    lift = "robosuite/Lift-v0"
    assert [crew(lift, n, "auto", 1) for n in (1, 2, 3, 20)] == [0, 2, 3, 4]
    assert [crew("Pendulum-v1", 20, workers, 8) for workers in ("auto", 0, 2)] == [0, 0, 2]
    assert [crew("metaworld/reach-v3", 2, "auto", execute) for execute in (1, 2)] == [2, 2]
    assert [crew("AdroitHandDoor-v1", n, "auto", 1) for n in (1, 2)] == [0, 2]
    monkeypatch.setattr(suites, "available", lambda: 6e9)
    assert crew(lift, 20, "auto", 1) == 3
    monkeypatch.setattr(suites, "cores", lambda: 1)
    assert crew(lift, 20, "auto", 1) == 0


def test_more_workers_than_environments_or_cores_is_said(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "cores", lambda: 2)
    suites.say.cache_clear()
    assert crew("Pendulum-v1", 3, 8, 1) == 3
    assert said == [
        "env.workers=8: 3 for 3 environments, there is no more to share",
        "env.workers=3: 2 cores can be used, so they share them",
    ]


def test_an_evaluation_makes_no_more_heavy_environments_than_pay() -> None:
    assert side_by_side("Hopper-v5", 50, "auto") == 50
    lift = "robosuite/Lift-v0"
    assert [side_by_side(lift, n, "auto") for n in (3, 8, 10, 50)] == [3, 8, 5, 8]
    assert [side_by_side(lift, n, 12) for n in (10, 24, 50)] == [10, 12, 10]


# ---- what is left --------------------------------------------------------------------------------

LEARNER = """
import torch
from rheo.envs.suites import make

env = make("fragile:Fragile-v0", 2, seed=0, workers=2, fault="hang", at=2, bad=0)
env.reset()
env.step(torch.zeros(2, 2))
print(*env.pids, flush=True)
env.step(torch.zeros(2, 2))
"""


def test_nothing_is_left_of_a_learner_that_is_killed(tmp_path: Path) -> None:
    """One worker waits for it, the other is in a step that never ends.

    The program needs no guard: workers do not run it again.
    """
    script = tmp_path / "learner.py"
    script.write_text(LEARNER)
    before = set(os.listdir("/dev/shm"))
    paths = [str(HERE), *sys.path]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, str(script)]
    learner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert learner.stdout is not None
    pids = [int(word) for word in learner.stdout.readline().split()]
    assert len(pids) == 2 and not any(map(gone, pids))
    parents = {parent(pid) for pid in pids}  # the server that they were forked from
    learner.kill()
    learner.wait()
    wait_until_gone([*pids, *parents])
    assert set(os.listdir("/dev/shm")) <= before


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_is_dropped_or_closed_ends_its_processes() -> None:
    before = set(os.listdir("/dev/shm"))
    first, second = (make(FRAGILE, 2, seed=0, workers=2) for _ in "ab")
    assert isinstance(first, Workers) and isinstance(second, Workers)
    pids = first.pids + second.pids
    for env in (first, second):
        env.reset()
    del env
    first.close()
    first.close()
    with pytest.raises(RuntimeError, match="after it was closed"):
        first.step(torch.zeros(2, 2))
    del second
    wait_until_gone(pids)
    assert set(os.listdir("/dev/shm")) <= before
