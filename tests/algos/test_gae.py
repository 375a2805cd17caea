"""Advantages against brute force and by hand; the running scale against the plain deviation."""

import numpy as np
import pytest
import torch

from rheo.algos.gae import RewardScale, gae


def brute(reward, discount, value, after, boundary, valid, lam):
    """The sum of every delta ahead in the same episode, term by term."""
    steps, envs = reward.shape
    delta = reward + discount * after - value
    found = np.zeros((steps, envs))
    for n in range(envs):
        for s in range(steps):
            factor = 1.0
            for k in range(s, steps):
                if not valid[k, n]:
                    break
                found[s, n] += factor * delta[k, n]
                factor *= lam * discount[k, n]
                if boundary[k, n]:
                    break
    return found


@pytest.mark.parametrize("seed", range(4))
def test_advantages_equal_brute_force_over_random_ends_and_broken_rows(seed):
    rng = np.random.default_rng(seed)
    shape = (30, 5)
    reward, value, after = (rng.normal(size=shape) for _ in range(3))
    terminated, truncated = rng.random(shape) < 0.1, rng.random(shape) < 0.1
    valid = rng.random(shape) > 0.1
    discount = 0.97 ** rng.integers(1, 5, shape) * ~terminated
    boundary = terminated | truncated
    arrays = (reward, discount, value, after, boundary, valid)
    tensors = [torch.from_numpy(array) for array in arrays]
    found = gae(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[5], 0.9)
    np.testing.assert_allclose(found.numpy(), brute(*arrays, 0.9), atol=1e-12)


def test_a_truncated_episode_is_bootstrapped_and_nothing_leaks_over_its_end():
    """3.T8: r = 1, V = 0 but for the last observation's 2, gamma .9, lambda 1, cut after 3."""
    reward, value = torch.ones(5, 1), torch.zeros(5, 1)
    after = torch.zeros(5, 1)
    after[2] = 2.0
    boundary = torch.tensor([[False], [False], [True], [False], [False]])
    reward[3:] = 100.0  # the next episode
    found = gae(reward, torch.full((5, 1), 0.9), value, after, boundary, ~boundary | True, 1.0)
    assert found[:3, 0].tolist() == pytest.approx([4.168, 3.52, 2.8], abs=1e-6)


def test_rewards_are_divided_by_the_deviation_of_all_discounted_returns_so_far():
    rng, gamma = np.random.default_rng(0), 0.9
    scale = RewardScale(10.0, torch.device("cpu"))
    running, seen = np.zeros(3), []
    reward, boundary = np.zeros((20, 3)), np.zeros((20, 3), bool)
    for _ in range(3):
        reward = rng.normal(1.0, 2.0, (20, 3))
        boundary = rng.random((20, 3)) < 0.2
        found = scale(
            torch.from_numpy(reward),
            torch.full((20, 3), gamma, dtype=torch.float64),
            torch.from_numpy(boundary),
        )
        for s in range(20):
            running = reward[s] + gamma * running
            seen.append(running.copy())
            running = running * ~boundary[s]
        std = np.concatenate(seen).std()
        assert scale.std.item() == pytest.approx(std, rel=1e-9)
        np.testing.assert_allclose(found.numpy(), np.clip(reward / std, -10, 10), rtol=1e-9)
    other = RewardScale(10.0, torch.device("cpu"))
    other.load_state_dict(scale.state_dict())
    again = (
        torch.from_numpy(reward),
        torch.full((20, 3), gamma, dtype=torch.float64),
        torch.from_numpy(boundary),
    )
    assert torch.equal(scale(*again), other(*again))


@pytest.mark.parametrize(("length", "gamma"), [(1, 0.99), (5, 0.99), (5, 0.5), (20, 0.9)])
def test_the_last_return_of_an_episode_is_counted_where_it_terminates(length, gamma):
    """Rewards of 1: the returns so far are (1 - gamma^k) / (1 - gamma), k = 1 .. length.

    Over episodes of 5 with gamma .99 they deviate by 1.379; without each one's last, by 1.144.
    """
    steps, envs = 3 * length, 2
    terminated = (torch.arange(1, steps + 1) % length == 0)[:, None].expand(steps, envs)
    discount = gamma * ~terminated
    scale = RewardScale(10.0, torch.device("cpu"))
    for part in (slice(0, 2), slice(2, steps)):  # two rollouts, the second from mid-episode on
        scale(torch.ones(steps, envs)[part], discount[part], terminated[part])
    returns = (1 - gamma ** np.arange(1, length + 1)) / (1 - gamma)
    assert scale.std.item() == pytest.approx(max(returns.std(), 1e-4), rel=1e-6)


def test_returns_over_chunks_are_discounted_by_the_steps_of_the_chunk_before():
    """Chunks of 2 and 1 steps at gamma .9: 5 is two steps after 3, and 7 one step after 5."""
    scale = RewardScale(10.0, torch.device("cpu"))
    discount = torch.tensor([[0.81], [0.9], [0.0]], dtype=torch.float64)
    ended = torch.tensor([[False], [False], [True]])
    scale(torch.tensor([[3.0], [5.0], [7.0]], dtype=torch.float64), discount, ended)
    second = 5 + 0.81 * 3
    expected = np.std([3.0, second, 7 + 0.9 * second])
    assert scale.std.item() == pytest.approx(expected, rel=1e-9)
