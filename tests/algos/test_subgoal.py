"""Places on the way to goals: on a grid with exact values, and learned from a walk on a line."""

from typing import Any

import numpy as np
import pytest
import torch

from rheo.envs.batch import Aimed
from rheo.envs.hindsight import Waypoints
from rheo.policies.candidates import sample
from rheo.policies.waypoints import chosen
from rheo.scripts.assemble import Sizes, make_algo

GAMMA = 0.9
MAZE = ["........", ".####.#.", ".#....#.", ".#.####.", "........"]  # to the middle by one way


def steps_between(maze: list[str]) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """The free cells of a grid, and the least steps [C, C] from each to each, by breadth first."""
    free = [(r, c) for r, row in enumerate(maze) for c, cell in enumerate(row) if cell == "."]
    place = {cell: i for i, cell in enumerate(free)}
    found = torch.full((len(free), len(free)), 10_000)
    for start in free:
        ring, away = [start], 0
        seen = {start}
        while ring:
            for cell in ring:
                found[place[start], place[cell]] = away
            sides = ((0, 1), (1, 0), (0, -1), (-1, 0))
            nearby = [(r + a, c + b) for r, c in ring for a, b in sides]
            ring = sorted({cell for cell in nearby if cell in place} - seen)
            seen |= set(ring)
            away += 1
    return free, found


@pytest.mark.parametrize("reach", [1, 3, 6])
def test_with_exact_values_the_chosen_place_lies_on_a_shortest_way_and_within_reach(reach):
    """Of all cells as candidates: as far along a shortest way as can be reached."""
    cells, d = steps_between(MAZE)
    assert d.max() < 10_000 and d.max() > 10
    value = GAMMA ** d.double()
    for goal in range(len(cells)):
        near, far = value, value[:, goal].expand(len(cells), -1)
        index = chosen(near, far, GAMMA ** (reach + 0.5))
        here = torch.arange(len(cells))
        walked, left = d[here, index], d[index, goal]
        assert torch.equal(walked + left, d[:, goal])
        assert torch.equal(walked, d[:, goal].clamp(max=reach))


def test_where_no_candidate_can_be_reached_the_nearest_is_gone_to():
    near = torch.tensor([[0.2, 0.5, 0.4], [0.2, 0.5, 0.8]])
    far = torch.tensor([[0.9, 0.1, 0.8], [0.9, 0.1, 0.3]])
    assert chosen(near, far, 0.6).tolist() == [1, 2]
    assert chosen(near, far, 0.45).tolist() == [1, 2]
    assert chosen(near, far, 0.1).tolist() == [0, 0]


def made(shipped_as: Any, sizes: Sizes, **changes: Any) -> Any:
    """The algorithm as it ships, on small networks without statistics."""
    tree = shipped_as("subgoal")
    net = {"width": 32, "depth": 2}
    tree["policy"]["net"] |= net
    for norm in ("obs_norm", "action_norm"):
        tree["policy"][norm]["kind"] = "none"
    way = {**tree["algo"]["way"], **net, "goal": [1], "achieved": [0], "members": 2}
    way["obs_norm"] = {**way["obs_norm"], "kind": "none"}
    tree["algo"] |= {"way": way, **changes}
    return make_algo(tree, sizes, 100)


@pytest.fixture
def walks(tmp_path):
    """Waypoints of random walks on eleven places of a line; an observation: place, goal."""
    draws = np.random.default_rng(0)
    step = draws.integers(0, 2, (60, 40)) * 2 - 1
    place = np.zeros((60, 41), int)
    for t in range(40):
        place[:, t + 1] = np.clip(place[:, t] + step[:, t], -5, 5)
    obs = np.stack([place, 0 * place], -1) / 5
    np.savez(
        tmp_path / "d.npz", observations=obs[:, :-1].reshape(-1, 2), actions=step.reshape(-1, 1),
        next_observations=obs[:, 1:].reshape(-1, 2), episode_ends=np.arange(1, 61) * 40,
    )  # fmt: skip
    return Waypoints(
        torch.Generator().manual_seed(0), 1, path=str(tmp_path / "d.npz"), batch_size=128,
        holdout=0.0, obs_steps=1, on_bad="refuse", action_scale="auto", big=False, storage="ram",
        obs_keys=None, filter=None, time_limit=None, execute=1, n_step=1, gamma=0.8,
        reward_norm="none", goal=[1], achieved=[0], tolerance=0.05, future=0.5, random=0.4,
        way_steps=3,
    )  # fmt: skip


@pytest.mark.learns
def test_the_value_learns_how_many_steps_a_goal_takes_and_a_chosen_place_is_on_its_way(
    shipped_as, walks
):
    """Between places d apart on a line it is gamma^d, though the walks went there by detours."""
    algo = made(shipped_as, Sizes(2, 1), gamma=0.8, lr=3e-3, target_rate=0.05, ema_rate=0.05,
                expectile=0.95, deploy_reach=3.5)  # fmt: skip
    algo.read(walks)
    for _ in range(250):
        algo.update(walks.next(None))
    line = torch.arange(-5, 6) / 5.0
    here, goal = (x.reshape(-1, 1) for x in torch.meshgrid(line, line, indexing="ij"))
    steps = ((here - goal).abs() * 5).round().flatten()
    near = steps <= 3
    found = algo.slow.value(here, goal)
    assert (found - 0.8**steps)[near].abs().mean() < 0.08
    assert (found[steps >= 7] < 0.45).float().mean() > 0.9
    obs = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [-1.0, -0.6]]).repeat_interleave(50, 0)
    place = algo.choose(obs, torch.Generator().manual_seed(1))[:, 0].view(3, 50)
    assert (place[0] > -0.9).float().mean() > 0.9 and (place[0] < 0.0).float().mean() > 0.9
    assert (place[1] < 0.9).float().mean() > 0.9 and (place[1] > 0.0).float().mean() > 0.9
    assert ((place[2] + 0.6).abs() < 0.25).float().mean() > 0.8  # the goal itself, or as good


def aimed(rows: int = 32) -> Aimed:
    """Random transitions under goals."""
    g = torch.Generator().manual_seed(3)
    obs, after = torch.randn((2, rows, 6), generator=g)
    action = torch.rand((rows, 1, 2), generator=g)
    reward, discount = torch.rand((2, rows), generator=g)
    way, leads = torch.rand((rows, 1), generator=g), torch.arange(rows) % 2 == 0
    return Aimed(obs, action, reward, discount, after, way, leads)


def test_the_base_rests_and_sees_the_chosen_place_in_every_step_of_its_history(shipped_as):
    algo = made(shipped_as, Sizes(6, 2, {}, 2))  # two steps of three numbers
    for part in (algo.way, algo.slow, algo.target):
        part.fit(torch.tensor([[-2.0], [4.0]]))
    torch.nn.init.normal_(algo.policy.net.outlet.weight)
    base = [p.clone() for p in algo.policy.parameters()]
    before = [p.detach().clone() for p in algo.slow.parameters()]
    told = algo.update(aimed())
    assert set(told) == {"critic/loss", "critic/value", "policy/loss"}
    assert all(map(torch.equal, base, algo.policy.parameters()))
    moved = [not torch.equal(a, b) for a, b in zip(before, algo.slow.parameters(), strict=True)]
    assert all(moved) or sum(moved) > len(moved) // 2
    obs = aimed().obs
    place = algo.choose(obs, torch.Generator().manual_seed(5))
    seen = algo.slow.toward(obs, place).unflatten(1, (2, 3))
    assert torch.equal(seen[..., [0, 2]], obs.unflatten(1, (2, 3))[..., [0, 2]])
    torch.testing.assert_close(seen[..., 1], (3 * place + 1).expand(-1, 2))
    generator = torch.Generator().manual_seed(5)
    action = algo.deploy(obs, torch.Generator().manual_seed(5))
    algo.choose(obs, generator)
    torch.testing.assert_close(action, sample(algo.policy, None, seen.flatten(1), generator))
    torch.testing.assert_close(algo.slow.here(obs), (obs[:, 3:4] - 1) / 3)
    torch.testing.assert_close(algo.slow.aim(obs), (obs[:, 4:5] - 1) / 3)


def test_rows_that_lead_nowhere_teach_the_flow_nothing(shipped_as):
    algo = made(shipped_as, Sizes(6, 2, {}, 2))
    algo.way.fit(torch.tensor([[-2.0], [4.0]]))
    batch = aimed()
    wrong = batch._replace(way=torch.where(batch.leads[:, None], batch.way, 3.0))
    draws = torch.randn(32, 1, 1), torch.rand(32)
    assert torch.equal(*(algo.way_loss(algo.way, one, draws) for one in (batch, wrong)))
    none = batch._replace(leads=torch.zeros(32, dtype=torch.bool))
    assert algo.way_loss(algo.way, none, draws).item() == 0.0
