"""What the recorder keeps, against gymnasium's own environments stepped one by one."""

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs.chunk import ChunkEnv
from rheo.envs.recorder import collect
from rheo.envs.suites import make


def world(name="Hopper-v4", num_envs=3, execute=1, obs_steps=1):
    return ChunkEnv(make(name, num_envs, threads=1), execute=execute, obs_steps=obs_steps, gamma=1)


def behaviour(env, horizon, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    plans = []

    def act(obs):
        plan = size * (2 * torch.rand((len(obs), horizon, env.action_dim), generator=generator) - 1)
        plans.append(plan)
        return plan

    return act, plans


def split(recording):
    return np.split(np.arange(len(recording.action)), recording.ends[:-1])


def test_recorded_steps_replay_in_gymnasium():
    env = world()
    act, _ = behaviour(env, 1)
    recording = collect(env, act, steps=200, episodes=None, seed=7)
    assert len(recording.action) == 200 and recording.ends[-1] == 200
    assert recording.reward is not None
    cursor, single = 0, gymnasium.make("Hopper-v4")
    for i, share in enumerate((67, 67, 66)):
        obs, _ = single.reset(seed=7 + i)
        for _ in range(share):
            assert np.allclose(recording.obs[cursor], obs, atol=1e-5)
            action = recording.action[cursor]
            obs, reward, terminated, truncated, _ = single.step(action)
            assert recording.reward[cursor] == pytest.approx(reward, abs=1e-4)
            assert bool(recording.terminated[cursor]) == terminated
            cursor += 1
            if cursor in recording.ends:
                episode = np.searchsorted(recording.ends, cursor)
                assert np.allclose(recording.obs[recording.successor[episode]], obs, atol=1e-5)
            if terminated or truncated:
                assert cursor in recording.ends
                obs, _ = single.reset()
    single.close()


@pytest.mark.parametrize("episodes", [2, 7])
def test_exactly_the_first_episodes_of_every_environment_are_kept(episodes):
    env = world()
    act, _ = behaviour(env, 1)
    recording = collect(env, act, steps=None, episodes=episodes, seed=0)
    assert len(recording.ends) == episodes
    assert recording.terminated[recording.ends - 1].all()  # a random hopper always falls
    assert recording.terminated.sum() == episodes


def test_chunks_are_recorded_as_the_single_steps_that_were_executed():
    env = world("Pendulum-v1", 2, execute=3, obs_steps=2)
    act, plans = behaviour(env, 4, size=0.5)
    recording = collect(env, act, steps=24, episodes=None, seed=0)
    executed = torch.cat([plan[:, :3] for plan in plans], 1).numpy()  # [N, steps, Da]
    assert np.allclose(recording.action.reshape(2, 12, 1), executed[:, :12], atol=1e-6)
    assert recording.obs.shape[1] == 3  # single observations, not histories
    again = env.reset(0)
    assert again.shape == (2, 6) and env.env.counters["bad_obs"] == 0


def test_actions_outside_the_box_are_recorded_as_executed():
    env = world("Pendulum-v1", 1)
    recording = collect(env, lambda obs: torch.full((1, 1, 1), 3.0), steps=5, episodes=None, seed=0)
    assert (recording.action == 1.0).all()


def test_one_of_steps_and_episodes_is_needed():
    env = world("Pendulum-v1", 1)
    with pytest.raises(ValueError, match="either steps or episodes"):
        collect(env, lambda obs: obs, steps=1, episodes=1, seed=0)
