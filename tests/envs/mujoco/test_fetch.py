"""Fetch's arm in a batch: gymnasium-robotics' own numbers, to the last bit."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from steps import assert_goes_on, same

from rheo.envs import families
from rheo.envs.mujoco import fetch, native, physics
from rheo.envs.suites import choose, make
from rheo.envs.vector import VectorEnv
from rheo.errors import EnvError

pytest.importorskip("gymnasium_robotics", reason="needs pip install 'rheo-rl[robotics]'")
NEEDS_BATCH = pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")

KINDS = ("Reach", "Push", "Slide", "PickAndPlace")
STEPS = 60
mujoco = physics.mujoco


def both(kind: str, count: int = 3, **options: Any) -> tuple[VectorEnv, VectorEnv]:
    """The batch, and gymnasium-robotics' own classes in a loop."""
    env_id = f"Fetch{kind}-v4"
    given = {"seed": 5, "dtype": torch.float64, "threads": 1, **options}
    return make(env_id, count, **given), make(env_id, count, backend="gymnasium", **given)


def towards(obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Actions [N, 4] to the object, or the goal, with noise; some lie outside their bounds."""
    aim = obs[:, 3:6] if obs.shape[1] == 28 else obs[:, -3:]
    noise = torch.rand(len(obs), 4, generator=generator) * 2.4 - 1.2
    return torch.cat([15 * (aim - obs[:, :3]), torch.zeros(len(obs), 1)], 1) + noise


@NEEDS_BATCH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", ["", "Dense"])
def test_every_number_is_that_of_the_loop(kind: str, reward: str) -> None:
    """Also while things touch, in steps that leave some out, and in later episodes."""
    ours, theirs = both(f"{kind}{reward}", max_episode_steps=23)
    assert (ours.backend, theirs.backend, ours.max_steps) == ("native", "gymnasium", 23)
    assert ours.obs_parts == theirs.obs_parts
    first = obs = ours.reset()
    assert torch.equal(first, theirs.reset())
    generator, moved = torch.Generator().manual_seed(1), 0.0
    for k in range(STEPS):
        active = torch.rand(3, generator=generator) < 0.7 if k % 3 == 0 else None
        action = towards(obs, generator)
        one, two = ours.step(action, active), theirs.step(action, active)
        assert same(one, two)
        moved = max(moved, float((one.final_obs - obs)[:, 3:5].abs().max()))
        obs = one.obs
    assert moved > 0.01 or kind == "Reach"  # the object
    assert torch.equal(ours.reset(), theirs.reset())
    assert not torch.equal(ours.reset(), first)


@pytest.mark.parametrize("kind", KINDS)
def test_one_simulation_alone_is_the_class_s_with_any_mujoco(kind: str) -> None:
    """The same formulas over an MjData of one's own, stepped by mj_step itself."""
    env_id = f"Fetch{kind}Dense-v4"
    families.register(env_id)
    theirs: Any = families.vector(env_id, {})
    one = native.opened(env_id, {})
    model, data = copy.copy(one.template.model), mujoco.MjData(one.template.model)
    names = ("qpos", "qvel", "ctrl", *one.kind.derived(one.settings))
    views = {name: getattr(data, name)[None] for name in names}
    task, obs = one.kind(one.template, one.settings, views), np.zeros((1, one.obs_dim))
    expected, _ = theirs.reset(seed=4)
    task.begin(0, np.empty(0), np.random.default_rng(np.random.PCG64(np.random.SeedSequence(4))))
    mujoco.mj_forward(model, data)
    task.settle(np.zeros(1, np.int32))
    task.observe(obs)
    assert np.array_equal(obs[0], expected)
    generator = torch.Generator().manual_seed(2)
    for _ in range(25):
        action = towards(torch.from_numpy(obs), generator).numpy().astype(np.float32)
        for name, value in task.inputs(action).items():
            views[name][:] = value
        mujoco.mj_step(model, data, nstep=one.kind.substeps(one.template))
        if task.amends:
            task.amend(slice(None))
            mujoco.mj_forward(model, data)
        task.keep(slice(None))
        task.observe(obs)
        expected, reward, _, _, info = theirs.step(action[0])
        assert np.array_equal(obs[0], expected)
        assert task.score(action, obs[:, 0], obs)[0].tolist() == [reward]
        assert task.success().tolist() == [bool(info["is_success"])]


@NEEDS_BATCH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reward", ["", "Dense"])
def test_success_is_told_and_paid_where_the_loop_does(kind: str, reward: str) -> None:
    ours, theirs = both(f"{kind}{reward}", 16)
    obs = ours.reset()
    theirs.reset()
    rng, task = np.random.default_rng(2), ours._task  # type: ignore[attr-defined]
    place = obs[:, 3:6] if kind != "Reach" else obs[:, :3]
    for i in range(16):
        goal = place[i].numpy() + rng.normal(size=3) * rng.choice([0.005, 0.03, 0.2])
        theirs._envs[i].unwrapped.goal = task.kept["goal"][i] = goal  # type: ignore[attr-defined]
    one, two = ours.step(torch.zeros(16, 4)), theirs.step(torch.zeros(16, 4))
    assert same(one, two)
    assert one.success is not None and one.success.any() and not one.success.all()
    assert len(one.reward.unique()) == (2 if reward == "" else 16)


@NEEDS_BATCH
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_to_the_last_bit(kind: str) -> None:
    ours, _ = both(kind, max_episode_steps=19)
    obs, generator = ours.reset(), torch.Generator().manual_seed(0)
    actions = [towards(obs, generator) for _ in range(40)]
    assert_goes_on(ours, both(kind, max_episode_steps=19, seed=99)[0], actions)


@NEEDS_BATCH
def test_an_arm_that_flies_apart_is_cut_as_in_the_loop() -> None:
    ours, theirs = both("Push")
    obs, generator = ours.reset(), torch.Generator().manual_seed(0)
    assert torch.equal(obs, theirs.reset())
    ours._task.qvel[1] = 1e12  # type: ignore[attr-defined]
    theirs._envs[1].unwrapped.data.qvel[:] = 1e12  # type: ignore[attr-defined]
    for k in range(4):
        action = towards(obs, generator)
        one, two = ours.step(action), theirs.step(action)
        assert same(one, two)
        assert one.valid.tolist() == [True, k > 0, True]
    assert ours.counters == theirs.counters == {"physics_resets": 1, "bad_obs": 0}


@NEEDS_BATCH
def test_what_the_batch_does_not_have_is_stepped_in_a_loop() -> None:
    push = "FetchPush-v4"
    assert choose(push, "auto", {}) == choose("FetchReachDense-v4", "auto", {}) == "native"
    assert choose(push, "auto", {"cameras": ["external_camera_0"]}) == "gymnasium"
    assert choose(push, "auto", {}, workers=2) == "gymnasium"  # as it was asked for


@NEEDS_BATCH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_type": "both"}, "reward_type=both: can be sparse or dense"),
        ({"reward": "sparse"}, "has no option 'reward'; did you mean 'reward_type'"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make("FetchPush-v4", 1, **options)


def test_the_sparse_and_the_dense_ids_are_there() -> None:
    assert sorted(fetch.TASKS) == sorted(
        f"Fetch{kind}{reward}-v4" for kind in KINDS for reward in ("", "Dense")
    )
