"""Observations beyond the bounds that an environment declares: told once, by every backend."""

import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv

from rheo.envs.mujoco import native, physics, walkers
from rheo.envs.packages import engine_lacks
from rheo.envs.suites import make
from rheo.scripts.watching import Watcher


class Fenced(HopperEnv):
    """Hopper, whose first number is said to stay below that of its standing, 1.25."""

    high = np.array([1.0, *[np.inf] * 10])

    @property
    def observation_space(self) -> spaces.Box:  # type: ignore[override]
        return spaces.Box(-np.inf, self.high, (11,), np.float64)

    @observation_space.setter
    def observation_space(self, value: Any) -> None:
        """Hopper's own is not taken."""


class Roomy(Fenced):
    """Hopper, which stays within what it declares."""

    high = np.array([1e3] * 11)


def fenced(kind: type, backend: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four environments, known to all backends under a name of their own."""
    lack = engine_lacks(backend) or ("" if physics.available() else "mujoco.batch came with 3.17")
    if lack and backend != "gymnasium":
        pytest.skip(lack)
    name = f"{kind.__name__}{backend.title()}"
    env_id, entry = f"{name}-v0", kind
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry, max_episode_steps=1000)  # type: ignore[arg-type]
    monkeypatch.setitem(native.TASKS, env_id, walkers.Hopper)
    if backend == "warp":
        from rheo.envs.mujoco import worlds

        monkeypatch.setitem(worlds.ROOMS, name, worlds.ROOMS["Hopper"])
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    return make(env_id, 4, backend=backend, seed=0)


@pytest.mark.parametrize("backend", ["gymnasium", "native", "warp"])
def test_an_observation_beyond_its_declared_bounds_is_told_once(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    env = fenced(Fenced, backend, monkeypatch)
    env.reset()
    action = torch.zeros(4, env.action_dim)
    with Watcher() as watcher:
        steps = [env.step(action) for _ in range(3)]
    assert all(bool(step.valid.all()) for step in steps)
    if backend == "warp":  # which a step does not read, and says it where its counters are
        assert watcher.reads == [] and "number 0" not in caplog.text
    assert env.counters["bad_obs"] == 0
    env.step(action)
    assert env.counters["bad_obs"] == 0
    text = "number 0 of the observation is"
    found = {id(r): r.getMessage() for r in caplog.records if text in r.getMessage()}
    said = list(found.values())
    assert len(said) == 1 and "is 1.2" in said[0]
    assert "its observation_space says -inf to 1; one of them is wrong" in said[0]
    assert env.id in said[0]
    env.close()


@pytest.mark.parametrize("backend", ["gymnasium", "native", "warp"])
def test_nothing_is_said_of_what_stays_within(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    env = fenced(Roomy, backend, monkeypatch)
    env.reset()
    for _ in range(3):
        env.step(torch.zeros(4, env.action_dim))
    assert env.counters["bad_obs"] == 0 and "of the observation" not in caplog.text
    env.close()
