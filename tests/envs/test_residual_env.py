"""Corrections of a plan: none is the plan itself, and what acts sees what it corrects."""

import pytest
import torch

from rheo.envs.chunk import ChunkEnv
from rheo.envs.residual_env import Residual
from rheo.envs.suites import make


def plan(obs, generator):
    """Chunks of 4 that depend on the observation."""
    k = torch.arange(1.0, 5.0)[None, :, None]
    return (3.0 * obs[:, None, :3] * k).sin()


def pair(execute=3, scale=0.1, name="Hopper-v5", **options):
    chunked, inner = (
        ChunkEnv(make(name, 3, threads=1, **options), execute=execute, obs_steps=1, gamma=0.9)
        for _ in range(2)
    )
    return chunked, Residual(inner, plan, scale, torch.Generator().manual_seed(0))


def test_no_correction_is_the_base_bit_for_bit():
    """Chunks of the one are single steps of the other, over ends of episodes and time limits."""
    chunked, residual = pair(max_episode_steps=14)
    obs = chunked.reset(5)
    seen = residual.reset(5)
    ends = 0
    for _ in range(12):
        assert torch.equal(seen[:, : chunked.obs_dim], obs)
        step = chunked.step(plan(obs, None))
        finished = torch.zeros(3, dtype=torch.bool)
        reward = torch.zeros(3, dtype=step.reward.dtype)
        one = step
        for k in range(3):
            active = ~finished
            before = residual.phase.copy()
            one = residual.step(torch.zeros(3, 1, 3))
            reward[active] += 0.9**k * one.reward[active]
            ended = (one.terminated | one.truncated) & active
            finished |= ended
            assert (residual.phase[ended.numpy()] == 0).all()  # a new episode has a new plan
            assert ((residual.phase == (before + 1) % 3) | ended.numpy()).all()
            if bool(ended.any()):
                break
        ends += int(finished.sum())
        if bool(finished.any()):  # from here on the two are out of step: start both anew
            torch.testing.assert_close(reward[finished], step.reward[finished])
            assert torch.equal(one.episode_return[finished], step.episode_return[finished])
            obs, seen = chunked.reset(5 + ends), residual.reset(5 + ends)
            continue
        torch.testing.assert_close(reward, step.reward)
        obs, seen = step.obs, one.obs
    assert ends > 0


def test_what_acts_sees_the_planned_action_and_the_phase():
    _, residual = pair(scale=0.5)
    seen = residual.reset(1)
    assert residual.obs_dim == seen.shape[1] == 11 + 3 + 1
    first = plan(seen[:, :11], None)
    for k in range(3):
        torch.testing.assert_close(seen[:, 11:14], first[:, k].to(seen))
        torch.testing.assert_close(seen[:, 14], torch.full((3,), k / 3, dtype=seen.dtype))
        step = residual.step(torch.zeros(3, 1, 3))
        if k < 2:
            torch.testing.assert_close(step.next_obs[:, 11:14], first[:, k + 1].to(seen))
        seen = step.obs
    torch.testing.assert_close(seen[:, 11:14], plan(seen[:, :11], None)[:, 0].to(seen))


@pytest.mark.parametrize("limit,phase", [(5, 2), (6, 0)], ids=["within a plan", "at its end"])
def test_the_successor_of_an_end_belongs_to_the_old_plan(limit, phase):
    """What a truncated episode bootstraps from is planned for it, never for the new episode."""
    _, residual = pair(max_episode_steps=limit, terminate_when_unhealthy=False)
    seen = residual.reset(3)
    for _ in range(limit - 1):
        seen = residual.step(torch.zeros(3, 1, 3)).obs
    old = residual.chunk.clone()
    step = residual.step(torch.zeros(3, 1, 3))
    assert bool(step.truncated.all())
    after = step.next_obs[:, :11]
    planned = old[:, phase] if phase else plan(after, None)[:, 0]
    torch.testing.assert_close(step.next_obs[:, 11:14], planned.to(seen))
    torch.testing.assert_close(step.next_obs[:, 14], torch.full((3,), phase / 3).to(seen))
    torch.testing.assert_close(step.obs[:, 11:14], plan(step.obs[:, :11], None)[:, 0].to(seen))
    assert not torch.allclose(step.obs[:, 11:14], step.next_obs[:, 11:14])


def test_a_correction_is_scaled_and_clipped_into_the_box():
    _, residual = pair(scale=0.5)
    executed = []
    inner = residual.env.step

    def step(action, active=None):
        executed.append(action.clone())
        return inner(action, active)

    residual.env.step = step
    seen = residual.reset(1)
    delta = torch.rand(3, 1, 3) * 2 - 1
    residual.step(delta)
    expected = (seen[:, 11:14] + 0.5 * delta[:, 0]).clamp(-1, 1)
    torch.testing.assert_close(executed[0], expected.to(executed[0]))
    with pytest.raises(ValueError, match="action has shape"):
        residual.step(torch.zeros(3, 1, 2))


def test_a_restored_world_goes_on_with_its_plans():
    _, residual = pair()
    residual.reset(2)
    for _ in range(4):
        residual.step(0.1 * torch.ones(3, 1, 3))
    state = residual.state_dict()
    _, other = pair()
    other.reset(9)
    other.load_state_dict(state)
    for _ in range(5):
        one, two = (env.step(0.1 * torch.ones(3, 1, 3)) for env in (residual, other))
        assert torch.equal(one.obs, two.obs) and torch.equal(one.reward, two.reward)
