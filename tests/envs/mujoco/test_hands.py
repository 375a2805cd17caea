"""Adroit's hands in a batch: gymnasium-robotics' own numbers, to the last bit."""

from typing import Any

import numpy as np
import pytest
import torch
from steps import assert_goes_on, same

from rheo.envs.chunk import ChunkEnv
from rheo.envs.mujoco import hands, physics
from rheo.envs.suites import choose, make
from rheo.envs.vector import VectorEnv
from rheo.errors import EnvError

pytest.importorskip("gymnasium_robotics", reason="needs pip install 'rheo-rl[robotics]'")
pytestmark = pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")

KINDS = ("Door", "Hammer", "Pen", "Relocate")
STEPS = 60


def both(kind: str, count: int = 3, **options: Any) -> tuple[VectorEnv, VectorEnv]:
    """The batch, and gymnasium-robotics' own classes in a loop."""
    env_id = f"AdroitHand{kind}-v1"
    given = {"seed": 5, "dtype": torch.float64, "threads": 1, **options}
    return make(env_id, count, **given), make(env_id, count, backend="gymnasium", **given)


def plan(env: Any, steps: int, seed: int = 0) -> torch.Tensor:
    """Actions, some of which lie outside their bounds."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, env.num_envs, env.action_dim, generator=generator) * 2.4 - 1.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", ["dense", "Sparse"])
def test_every_number_is_that_of_the_loop(kind: str, reward: str) -> None:
    """Also in steps that leave some out, beyond the bounds of actions, and in later episodes."""
    ours, theirs = both(kind, max_episode_steps=23, reward_type=reward)
    assert (ours.backend, theirs.backend, ours.max_steps) == ("native", "gymnasium", 23)
    first = ours.reset()
    assert torch.equal(first, theirs.reset())
    generator = torch.Generator().manual_seed(1)
    for k, action in enumerate(plan(ours, STEPS)):
        active = torch.rand(3, generator=generator) < 0.7 if k % 3 == 0 else None
        assert same(ours.step(action, active), theirs.step(action, active))
    assert torch.equal(ours.reset(), theirs.reset())
    assert not torch.equal(ours.reset(), first)


def scattered(kind: str, env: Any, rng: np.random.Generator) -> np.ndarray:
    """Positions in which what the reward asks for is there, nearly there, or not."""
    qpos = env.init_qpos.copy()
    if kind == "Door":
        qpos[-2] = rng.choice([0.0, 0.5, 1.2, 1.45])
    if kind == "Hammer":
        nail = int(env.model.joint("nail_dir").qposadr[0])
        qpos[nail] = rng.uniform(0, 0.1)
        qpos[-4] = rng.choice([0.0, 0.2])
    if kind == "Pen":
        tilt = np.pi / 4 + rng.normal() * rng.choice([0.02, 0.2, 1.0])  # pi / 4: the pen's own
        env.model.body("target").quat[:] = [np.cos(tilt), 0, np.sin(tilt), 0]
        qpos[-6:-3] += rng.choice([0.0, -0.2]) * np.array([0, 0, 1])
    if kind == "Relocate":
        target, ball = (env.data.site("target").xpos, env.data.body("Object").xpos)
        qpos[-6:-3] += target - ball + rng.normal(size=3) * rng.choice([0.01, 0.05, 0.3])
    return qpos


@pytest.mark.parametrize("kind", KINDS)
def test_bonuses_and_success_are_paid_where_the_loop_pays_them(kind: str) -> None:
    ours, theirs = both(kind, 16)
    ours.reset()
    theirs.reset()
    rng, task = np.random.default_rng(2), ours._task  # type: ignore[attr-defined]
    for i in range(16):
        inner = theirs._envs[i].unwrapped  # type: ignore[attr-defined]
        inner.data.qpos[:] = task.qpos[i] = scattered(kind, inner, rng)
        for name in task.own:
            task.views[name][i] = getattr(inner.model, name)
    rewards = []
    for action in 0.1 * plan(ours, 2):
        one, two = ours.step(action), theirs.step(action)
        assert same(one, two)
        assert one.success is not None and one.success.any() and not one.success.all()
        rewards.append(one.reward)
    assert torch.cat(rewards).std() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_to_the_last_bit(kind: str) -> None:
    ours, _ = both(kind, max_episode_steps=19)
    ours.reset()
    actions = plan(ours, 40)
    assert_goes_on(ours, both(kind, max_episode_steps=19, seed=99)[0], actions)


def test_a_hand_that_flies_apart_is_cut_as_in_the_loop() -> None:
    ours, theirs = both("Pen")
    assert torch.equal(ours.reset(), theirs.reset())
    actions = plan(ours, 4)
    ours._task.qvel[1] = 1e12  # type: ignore[attr-defined]
    theirs._envs[1].unwrapped.data.qvel[:] = 1e12  # type: ignore[attr-defined]
    for k, action in enumerate(actions):
        one, two = ours.step(action), theirs.step(action)
        assert same(one, two)
        assert one.valid.tolist() == [True, k > 0, True]
    assert ours.counters == theirs.counters == {"physics_resets": 1, "bad_obs": 0}


def test_chunks_are_those_of_the_loop_and_know_who_solved_the_task() -> None:
    ours, theirs = (
        ChunkEnv(env, execute=4, obs_steps=2, gamma=0.9)
        for env in both("Door", max_episode_steps=10)
    )
    assert torch.equal(ours.reset(), theirs.reset())
    ours.env._task.qpos[1, -2] = 1.5  # type: ignore[attr-defined]
    theirs.env._envs[1].unwrapped.data.qpos[-2] = 1.5  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(3)
    solved: Any = None
    for _ in range(3):
        action = torch.rand(3, 4, 28, generator=generator) - 0.5
        one, two = ours.step(action), theirs.step(action)
        assert same(one, two)
        solved = one.success_once
    assert solved.tolist() == [False, True, False]


def test_what_the_batch_does_not_have_is_stepped_in_a_loop() -> None:
    door = "AdroitHandDoor-v1"
    assert choose(door, "auto", {}) == choose("AdroitHandPenSparse-v1", "auto", {}) == "native"
    assert choose(door, "auto", {"reward_type": "sparse"}, 0) == "native"
    assert choose(door, "auto", {"cameras": ["fixed"]}) == "gymnasium"
    assert choose(door, "auto", {}, workers=2) == "gymnasium"  # as it was asked for
    assert choose("Hopper-v5", "auto", {}, workers=2) == "native"
    with pytest.raises(EnvError, match="env.workers=2: AdroitHandDoor-v1 is stepped in batches"):
        make(door, 2, backend="native", workers=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_type": "both"}, "expected `dense` or `sparse` but got both"),
        ({"reward": "sparse"}, "has no option 'reward'; did you mean 'reward_type'"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make("AdroitHandDoor-v1", 1, backend="native", **options)


def test_the_dense_and_the_sparse_ids_are_there() -> None:
    assert sorted(hands.TASKS) == sorted(
        f"AdroitHand{kind}{reward}-v1" for kind in KINDS for reward in ("", "Sparse")
    )
    env = make("AdroitHandHammerSparse-v1", 1, seed=0)
    env.reset()
    assert env.step(torch.zeros(1, 26)).reward.tolist() == pytest.approx([-0.1])
