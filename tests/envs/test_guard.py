"""Environments of others: what they do wrong is one message, what they may do is read."""

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rheo.envs import packages
from rheo.envs.mujoco import physics
from rheo.envs.suites import make
from rheo.errors import EnvError
from rheo.stats import wilson


class Odd(gymnasium.Env):
    """Five steps an episode; `fault` names what it does instead of gymnasium's contract."""

    def __init__(self, fault: str = "", value: Any = None, at: int = 3) -> None:
        if fault == "make":
            raise value
        self.observation_space = spaces.Box(-9, 9, (3,), np.float64)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.fault, self.value, self.at, self.t = fault, value, at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        if self.fault == "reset raises":
            raise self.value
        return self.value if self.fault == "reset" else (np.zeros(3), {})

    def step(self, action: Any) -> Any:
        self.t += 1
        answer = [np.full(3, self.t), 1.0, False, self.t >= 5, {}]
        if self.t < self.at or not self.fault:
            return tuple(answer)
        if self.fault == "step raises":
            raise self.value
        if self.fault == "ours":
            wilson(1, 0)  # divides by zero in a line of this package
        if self.fault == "step":
            return self.value
        place = ("obs", "reward", "terminated", "truncated", "info").index(self.fault)
        answer[place] = self.value
        return tuple(answer)


class Seedless(Odd):
    """reset without its arguments."""

    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(3), {}


@pytest.fixture(autouse=True)
def registered() -> None:
    kinds: dict[str, Any] = {"RheoOdd-v0": Odd, "RheoSeedless-v0": Seedless}
    for name, kind in kinds.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, kind, max_episode_steps=50)


def run(fault: str, value: Any, steps: int = 4) -> Any:
    env = make("RheoOdd-v0", 2, fault=fault, value=value)
    env.reset(7)
    return [env.step(torch.zeros(2, 2)) for _ in range(steps)][-1]


@pytest.mark.parametrize(
    ("fault", "value", "found"),
    [
        ("reward", None, "the reward is None (NoneType), expected one real number"),
        ("reward", np.ones(2), "the reward is an array of shape (2,) and type float64"),
        ("reward", "high", "the reward is 'high' (str)"),
        ("reward", 1j, "the reward is 1j (complex)"),
        ("terminated", None, "the terminated is None (NoneType), expected True or False"),
        ("truncated", np.zeros(2, bool), "the truncated is an array of shape (2,)"),
        ("info", None, "info is None (NoneType), expected a dictionary"),
        ("info", {"success": "yes"}, "the info['success'] is 'yes' (str), expected a flag"),
        ("obs", np.zeros(4), "shape (4,), but its observation_space says (3,)"),
        ("obs", None, "the observation has None (NoneType), but its observation_space says"),
        ("obs", np.array(["a", "b", "c"]), "the observation's type is <U1"),
        ("step", (np.zeros(3), 1.0, False, {}), "step returned 4 values, expected the five (obs,"),
        ("step", np.zeros(3), "step returned 3 values, expected the five (obs,"),
        ("step raises", ConnectionError("gone"), "step raised ConnectionError: gone (test_guard"),
        ("step raises", AssertionError(), "step raised AssertionError (test_guard.py, line"),
    ],
)
def test_a_wrong_step_is_named_with_environment_seed_step_got_and_expected(fault, value, found):
    with pytest.raises(EnvError) as caught:
        run(fault, value)
    assert found in str(caught.value)
    assert "RheoOdd-v0, environment 0 (seed 7, episode 1), step 3: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("RheoOdd-v0", {"fault": "reset", "value": np.zeros(3)}, "an array of shape (3,) and type"),
        ("RheoOdd-v0", {"fault": "reset", "value": (np.zeros(2), {})}, "shape (2,), but its"),
        ("RheoOdd-v0", {"fault": "reset", "value": (np.full(3, np.nan), {})}, "non-finite"),
        ("RheoOdd-v0", {"fault": "reset raises", "value": OSError("busy")}, "OSError: busy"),
        ("RheoSeedless-v0", {}, "reset takes no seed"),
    ],
)
def test_a_wrong_reset_is_named(name, options, found):
    env = make(name, 2, **options)
    with pytest.raises(EnvError) as caught:
        env.reset(7)
    assert found in str(caught.value)
    assert f"{name}, environment 0 (seed 7, episode 1), reset: " in str(caught.value)


def test_the_episode_and_the_environment_that_fail_are_counted():
    env = make("RheoOdd-v0", 3)
    env.reset(7)
    for _ in range(11):  # two episodes of five steps, one step of a third
        env.step(torch.zeros(3, 2))
    inner: Any = env._envs[2].unwrapped  # type: ignore[attr-defined]
    inner.fault, inner.value, inner.at = "reward", None, 2
    with pytest.raises(EnvError, match=r"environment 2 \(seed 9, episode 3\), step 2: the reward"):
        env.step(torch.zeros(3, 2))


@pytest.mark.parametrize(
    "reward", [2.5, np.array([2.5]), np.array([[2.5]]), np.float32(2.5), torch.tensor(2.5)]
)
def test_a_reward_of_one_number_is_that_number(reward):
    assert run("reward", reward).reward.tolist() == [2.5, 2.5]


@pytest.mark.parametrize("flag", [np.bool_(True), 1, np.array([True]), np.array(1.0)])
def test_an_end_of_one_flag_is_that_flag(flag):
    assert run("terminated", flag, steps=3).terminated.tolist() == [True, True]


@pytest.mark.parametrize(
    ("success", "expected"),
    [(np.array([False, True]), True), (np.zeros(2, bool), False), (1.0, True), (None, False)],
)
def test_of_several_successes_any_counts(success, expected):
    step = run("info", {"is_success": success})
    assert step.success.tolist() == [expected, expected]


def test_interrupts_and_our_own_faults_pass_as_they_are():
    with pytest.raises(KeyboardInterrupt):
        run("step raises", KeyboardInterrupt())
    with pytest.raises(ZeroDivisionError):
        run("ours", None)


@pytest.mark.parametrize("error", [AssertionError("joint"), AttributeError("np.bool"), KeyError(3)])
def test_whatever_a_constructor_raises_is_a_message(error):
    with pytest.raises(EnvError, match=f"RheoOdd-v0 .*{type(error).__name__}"):
        make("RheoOdd-v0", 1, fault="make", value=error)


def test_whatever_importing_a_module_raises_is_a_message(tmp_path, monkeypatch):
    (tmp_path / "rheo_torn.py").write_text("def broken(:\n")
    (tmp_path / "rheo_lame.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvError, match="rheo_torn:Id-v0 cannot be made: it raised SyntaxError"):
        make("rheo_torn:Id-v0", 1)
    with pytest.raises(EnvError, match="RuntimeError: no licence .rheo_lame.py, line 1"):
        make("rheo_lame:Id-v0", 1)
    sys.modules.pop("rheo_torn", None)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("native", marks=pytest.mark.skipif(not physics.available(), reason="3.17")),
        "gymnasium",
    ],
)
@pytest.mark.parametrize(
    "options", [{"healthy_z_range": 5}, {"reset_noise_scale": "x"}, {"frame_skip": "often"}]
)
def test_options_of_a_wrong_type_are_a_message_on_either_backend(backend, options):
    with pytest.raises(EnvError, match="Hopper-v5.* TypeError: "):
        env = make("Hopper-v5", 1, backend=backend, **options)
        env.reset(0)
        env.step(torch.zeros(1, 3))
    assert make("Hopper-v5", 1, backend=backend, healthy_z_range=(0.5, 9.0)).obs_dim == 11


@pytest.mark.parametrize("old", ["Hopper-v2", "HalfCheetah-v3"])
def test_an_old_id_is_answered_with_the_versions_that_there_are(old):
    name = old.partition("-")[0]
    with pytest.raises(EnvError, match=f"{old} cannot be made: .*; use {name}-v5 or {name}-v4"):
        make(old, 1)
    assert make(f"{name}-v5", 1).obs_dim > 0


def test_a_family_that_does_not_run_names_the_versions_that_are_there(monkeypatch):
    monkeypatch.setitem(packages.ELSEWHERE, "RheoOdd", ("gymnasium", "torch"))
    with pytest.raises(EnvError, match=r"torch \S+ and mujoco \S+ are installed$"):
        make("RheoOdd-v0", 1, fault="make", value=AssertionError())


def test_a_failed_environment_is_saved_as_one_that_begins_anew():
    env = make("RheoOdd-v0", 2, fault="step raises", value=OSError(), at=4)
    env.reset(7)
    for _ in range(3):
        env.step(torch.zeros(2, 2))
    with pytest.raises(EnvError):
        env.step(torch.zeros(2, 2))
    other = make("RheoOdd-v0", 2)
    other.reset(1)
    begun = other.load_state_dict(env.state_dict())
    assert begun is not None
    assert begun.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("bound", [[], ["robosuite"], ["robosuite", "metaworld"]])
def test_the_remedy_for_an_old_mujoco_leaves_what_depends_on_it_alone(monkeypatch, bound):
    for module in (packages, physics):
        monkeypatch.setattr(module, "bound_packages", lambda: bound)
    remedy, command = physics.pool_remedy(), packages.pip_install("ogbench")
    if not bound:
        assert (remedy, command) == ("pip install 'mujoco>=3.17'", "pip install ogbench")
        return
    assert "keep this MuJoCo" in remedy and " and ".join(bound) in remedy
    assert "pip install" not in remedy and "another virtual environment" in remedy
    assert command == "pip install -c constraints-manipulation.txt ogbench"
