"""The vector contract, on both backends."""

import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rheo.envs import packages, suites
from rheo.envs.guard import NonFiniteAction
from rheo.envs.mujoco import physics
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv
from rheo.errors import EnvError

NEEDS_BATCH = pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
NATIVE = pytest.param("native", marks=NEEDS_BATCH)
NEEDS_WARP = pytest.mark.skipif(
    packages.engine_lacks("warp") is not None, reason="needs pip install 'rheo-rl[warp]'"
)
both = pytest.mark.parametrize("backend", [NATIVE, "gymnasium"])
all_three = pytest.mark.parametrize(
    "backend", [NATIVE, "gymnasium", pytest.param("warp", marks=NEEDS_WARP)]
)


def actions(env: VectorEnv, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, env.num_envs, env.action_dim, generator=generator) * 2 - 1


def shoot(env: Any, index: int) -> None:
    """Give a simulation a speed that MuJoCo will not accept."""
    if env.backend == "native":
        env._task.qvel[index] = 1e12
    else:
        env._envs[index].unwrapped.data.qvel[:] = 1e12


def same(one: Any, two: Any) -> bool:
    """Whether two records of tensors are equal to the last bit; None is only equal to None."""
    return all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


@both
def test_tensors_have_the_promised_shapes_and_types(backend: str) -> None:
    env = make("Hopper-v5", 3, seed=0, backend=backend)
    assert (env.id, env.num_envs, env.obs_dim, env.action_dim) == ("Hopper-v5", 3, 11, 3)
    assert (env.max_steps, env.backend) == (1000, backend)
    obs = env.reset()
    step = env.step(actions(env, 1)[0])
    for value in (obs, step.obs, step.final_obs):
        assert value.shape == (3, 11)
        assert value.dtype == torch.float32
    assert step.reward.shape == (3,)
    for flag in (step.terminated, step.truncated, step.valid):
        assert flag.shape == (3,)
        assert flag.dtype == torch.bool


@all_three
def test_a_time_limit_truncates_and_final_obs_is_not_the_next_start(backend: str) -> None:
    env = make("HalfCheetah-v5", 2, seed=0, backend=backend, max_episode_steps=4)
    assert env.max_steps == 4
    before = env.reset()
    for k, action in enumerate(actions(env, 9), start=1):
        step = env.step(action)
        assert step.truncated.tolist() == [k % 4 == 0] * 2
        assert not step.terminated.any()
        assert step.valid.all()
        if k % 4 == 0:
            assert (step.obs - step.final_obs).abs().amax(1).min() > 0.1
            assert step.obs[:, :8].abs().max() <= 0.1 + 1e-6  # a fresh start, near the origin
            assert not torch.equal(step.obs, before)
        else:
            assert torch.equal(step.obs, step.final_obs)


@both
def test_environment_i_is_seeded_with_seed_plus_i_and_goes_on_by_itself(backend: str) -> None:
    together = make("Hopper-v5", 3, seed=5, backend=backend)
    first, second = together.reset(), together.reset()
    for i in range(3):
        alone = make("Hopper-v5", 1, backend=backend)
        assert torch.equal(alone.reset(5 + i)[0], first[i])
        assert torch.equal(alone.reset()[0], second[i])
    assert not torch.equal(first, second)
    assert torch.equal(together.reset(5), first)


@both
def test_inactive_rows_stay_exactly_where_they_are(backend: str) -> None:
    env = make("Reacher-v5", 3, seed=1, backend=backend, dtype=torch.float64)
    lone = make("Reacher-v5", 3, seed=1, backend=backend, dtype=torch.float64)
    env.reset()
    lone.reset()
    plan = actions(env, 12).double()
    seen = []
    for k in range(6):
        active = torch.tensor([True, k % 2 == 0, False])
        nan_where_idle = torch.where(active[:, None], plan[k], torch.nan)
        step = env.step(nan_where_idle, active)
        assert step.valid.tolist() == active.tolist()
        assert not step.reward[~active].any()
        assert not (step.terminated | step.truncated).any()
        seen.append(step.obs)
    expected = [lone.step(plan[k]).obs for k in range(0, 6, 2)]
    assert torch.equal(seen[-1][1], expected[-1][1])
    start = make("Reacher-v5", 3, seed=1, backend=backend, dtype=torch.float64).reset()
    assert torch.equal(seen[-1][2], start[2])
    assert env.step(plan[6], torch.zeros(3, dtype=torch.bool)).valid.any().item() is False


@both
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_action_is_refused_before_anything_moves(backend: str, value: float) -> None:
    env = make("Hopper-v5", 3, seed=0, backend=backend)
    env.reset()
    plan = actions(env, 3)
    env.step(plan[0])
    saved = env.state_dict()
    broken = plan[1].clone()
    broken[2, 1] = value
    with pytest.raises(NonFiniteAction, match="Hopper-v5.*environment 2 at step 2") as caught:
        env.step(broken)
    assert (caught.value.env_id, caught.value.index, caught.value.step) == ("Hopper-v5", 2, 2)
    assert isinstance(caught.value, FloatingPointError)
    after = env.step(plan[1])
    env.load_state_dict(saved)
    assert torch.equal(env.step(plan[1]).obs, after.obs)


@both
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5"])
def test_a_state_that_mujoco_resets_is_cut_and_counted_every_time(
    backend: str, env_id: str
) -> None:
    env = make(env_id, 3, seed=0, backend=backend)
    obs = env.reset()
    plan = actions(env, 9)
    for k in range(3):
        shoot(env, 1)
        held, step = obs[1], env.step(plan[2 * k])
        assert step.valid.tolist() == [True, False, True]
        assert (bool(step.truncated[1]), bool(step.terminated[1])) == (True, False)
        assert torch.equal(step.final_obs[1], held)
        assert float(step.reward[1]) == 0
        assert not torch.equal(step.obs[1], held)
        assert env.counters == {"physics_resets": k + 1, "bad_obs": 0}
        step = env.step(plan[2 * k + 1])
        assert step.valid.all()
        assert torch.isfinite(step.obs).all()
        obs = step.obs


@both
@pytest.mark.parametrize(
    "env_id", ["Hopper-v5", "Ant-v5", "Reacher-v5", "InvertedDoublePendulum-v5"]
)
def test_a_saved_state_continues_bit_for_bit(backend: str, env_id: str) -> None:
    env = make(env_id, 3, seed=4, backend=backend, max_episode_steps=23)
    env.reset()
    plan = actions(env, 80)
    idle = torch.tensor([True, False, True])
    for action in plan[:30]:
        env.step(action)
    saved = env.state_dict()
    masks: list[torch.Tensor | None] = [idle if k % 5 == 0 else None for k in range(50)]
    straight = [env.step(a, m) for a, m in zip(plan[30:], masks, strict=True)]
    other = make(env_id, 3, seed=99, backend=backend, max_episode_steps=23)
    other.reset()
    other.step(plan[3])
    for target in (other, env):
        target.load_state_dict(saved)
        resumed = [target.step(a, m) for a, m in zip(plan[30:], masks, strict=True)]
        for one, two in zip(straight, resumed, strict=True):
            assert same(one, two)


@both
def test_a_state_of_other_settings_is_refused(backend: str) -> None:
    env = make("Hopper-v5", 2, seed=0, backend=backend)
    env.reset()
    with pytest.raises(EnvError, match="num_envs 2 but this environment has 3"):
        make("Hopper-v5", 3, backend=backend).load_state_dict(env.state_dict())


@both
def test_bounds_other_than_one_are_mapped_and_said(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    from rheo.envs import vector

    vector.say.cache_clear()
    with caplog.at_level(logging.INFO, logger="rheo"):
        env = make("InvertedPendulum-v5", 1, seed=0, backend=backend, dtype=torch.float64)
        make("InvertedPendulum-v5", 1, seed=0, backend=backend)
    assert caplog.text.count("mapped to the bounds [[-3.0, 3.0]]") == 1
    env.reset(7)
    own = gymnasium.make("InvertedPendulum-v5")
    own.reset(seed=7)
    obs = env.step(torch.tensor([[0.5]], dtype=torch.float64)).final_obs
    assert np.abs(obs[0].numpy() - own.step(np.array([1.5]))[0]).max() < 1e-12


@both
def test_stepping_before_reset_and_wrong_shapes_are_errors(backend: str) -> None:
    env = make("Hopper-v5", 2, backend=backend)
    with pytest.raises(RuntimeError, match="before reset"):
        env.step(torch.zeros(2, 3))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \(2, 3\)"):
        env.step(torch.zeros(2, 4))


def test_a_nan_observation_cuts_the_episode_and_is_counted() -> None:
    env = make("RheoTally-v0", 2, seed=0, broken_at=2, longest=20)
    env.reset()
    first = env.step(torch.zeros(2, 1))
    step = env.step(torch.zeros(2, 1))
    assert step.truncated.all()
    assert not step.valid.any()
    assert not step.terminated.any()
    assert torch.equal(step.final_obs, first.final_obs)
    assert env.counters["bad_obs"] == 2
    assert step.obs[:, 1].tolist() == [0, 0]


def test_an_environment_that_cannot_be_saved_starts_anew_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = make("RheoTally-v0", 2, seed=0)
    env.reset()
    env.step(torch.zeros(2, 1))
    state = env.state_dict()
    assert state["exact"] is False
    with caplog.at_level(logging.WARNING, logger="rheo"):
        env.load_state_dict(state)
    assert "2 running episodes were replaced" in caplog.text
    assert env.step(torch.zeros(2, 1)).final_obs[:, 1].tolist() == [1, 1]


BOX = spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((BOX, spaces.Discrete(3)), "choose an environment with a bounded Box"),
        ((BOX, spaces.Box(-np.inf, np.inf, (2,))), "unbounded actions"),
        ((BOX, spaces.Box(-1.0, 1.0, (2, 2))), "not one vector"),
        ((BOX, spaces.Box(0.0, 0.0, (2,))), "low >= high"),
        ((spaces.Box(-1.0, 1.0, (4, 4)), BOX), "FlattenObservation"),
        ((spaces.Discrete(3), BOX), "FlattenObservation"),
    ],
)
def test_spaces_that_cannot_be_used_are_refused_with_a_remedy(options: Any, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make("RheoSpaces-v0", 1, observation=options[0], action=options[1])


def test_dictionary_observations_are_flattened() -> None:
    space = spaces.Dict({"a": spaces.Box(-1.0, 1.0, (2,)), "b": spaces.Box(-1.0, 1.0, (3,))})
    env = make("RheoSpaces-v0", 2, observation=space, action=BOX)
    assert env.obs_dim == 5
    assert env.reset(0).shape == (2, 5)


def test_an_observation_of_another_shape_than_promised_is_named() -> None:
    env = make("RheoTally-v0", 1, size=4)
    with pytest.raises(EnvError, match=r"shape \(3,\), but its observation_space says \(4,\)"):
        env.reset(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "Hoper-v5"}, "unknown environment 'Hoper-v5'; did you mean 'Hopper-v5'"),
        ({"id": "Hopper-v5", "num_envs": 0}, "num_envs is 0"),
        ({"id": "Hopper-v5", "threads": -1}, "threads is -1"),
        ({"id": "Hopper-v5", "seed": -3}, "seed is -3"),
        ({"id": "Hopper-v5", "backend": "fast"}, "choose one of auto, native, gymnasium"),
        ({"id": "Hopper-v5", "backend": "gymnasium", "helthy": 1}, "refuses its options"),
        ({"id": "Pendulum-v1", "backend": "native"}, "use backend=gymnasium"),
        ({"id": "CartPole-v1"}, "choose an environment with a bounded Box"),
        pytest.param(
            {"id": "Hopper-v5", "backend": "native", "width": 9},
            "needs backend=gymnasium",
            marks=NEEDS_BATCH,
        ),
    ],
)
def test_bad_requests_are_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make(**{"num_envs": 1, **arguments})


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packages.ELSEWHERE, "Absent", ("no_such_module_anywhere", "absent-envs"))
    with pytest.raises(EnvError, match="pip install .*absent-envs"):
        make("AbsentThing-v0", 1)


def test_a_backend_s_own_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"warp": (("no_such_module_anywhere",), "'rheo-rl[warp]'", (3, 0))}
    monkeypatch.setattr(packages, "ENGINES", missing)
    monkeypatch.setattr(packages, "bound_packages", list)
    with pytest.raises(EnvError, match=r"env.backend=warp needs .*pip install 'rheo-rl\[warp\]'"):
        make("Hopper-v5", 1, backend="warp")
    monkeypatch.setattr(packages, "bound_packages", lambda: ["robosuite"])
    with pytest.raises(EnvError, match="needs a newer MuJoCo than robosuite, .*without it"):
        make("Hopper-v5", 1, backend="warp")
    monkeypatch.setattr(packages, "ENGINES", {"warp": (("torch",), "torch", (99, 1))})
    with pytest.raises(EnvError, match=r"needs Python 99.1 and this is 3\.\d+; use a newer Python"):
        make("Hopper-v5", 1, backend="warp")


def test_auto_takes_the_batch_where_it_exists_and_says_once_where_it_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if physics.available():
        assert make("Hopper-v5", 1).backend == "native"
    assert make("Pendulum-v1", 1).backend == "gymnasium"
    monkeypatch.setattr(suites, "_said", set())
    monkeypatch.setattr(physics, "available", lambda: False)
    with caplog.at_level(logging.WARNING, logger="rheo"):
        assert make("Hopper-v5", 1).backend == "gymnasium"
        assert make("Hopper-v5", 1).backend == "gymnasium"
    assert caplog.text.count("mujoco.batch is missing") == 1
    with pytest.raises(EnvError, match="pip install|virtual environment"):
        make("Hopper-v5", 1, backend="native")
