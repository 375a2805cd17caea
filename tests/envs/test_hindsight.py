"""Goals in hindsight against plain loops, and how often each of them is drawn."""

import numpy as np
import pytest
import torch

from rheo.envs.hindsight import Hindsight, Waypoints

LENGTHS = [5, 3, 9]
KNOWN = [True, False, True]  # whether what follows the last step is recorded
GOAL, ACHIEVED = [2, 3], [0, 1]
SETTINGS = {
    "batch_size": 6, "holdout": 0.0, "obs_steps": 2, "on_bad": "refuse", "action_scale": "auto",
    "big": False, "storage": "ram", "obs_keys": None, "filter": None, "time_limit": None,
    "execute": 2, "n_step": 1, "gamma": 0.9, "reward_norm": "none",
    "goal": GOAL, "achieved": ACHIEVED, "tolerance": 0.1, "future": 1.0, "random": 0.0,
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    """Positions that tell their step, (s, -s); the goal is (100, 100) everywhere."""
    obs, after, ends, step = [], [], np.cumsum(LENGTHS), 0
    for length in LENGTHS:
        rows = [[step + i, -step - i, 100, 100, 7] for i in range(length + 1)]
        obs, after, step = obs + rows[:-1], after + rows[1:], step + length
    file = tmp_path / "d.npz"
    np.savez(
        file, observations=np.array(obs, float), next_observations=np.array(after, float),
        successor_known=np.array(KNOWN), actions=np.zeros((len(obs), 1)), episode_ends=ends,
    )  # fmt: skip
    return str(file)


@pytest.fixture
def data(path):
    """Makes a source over these positions: `data(kind, **changes)`."""

    def make(kind=Hindsight, **changes):
        settings = {**SETTINGS, **changes}
        return kind(torch.Generator().manual_seed(0), 2, path=path, **settings)

    return make


def later_of(step):
    """The positions that the recording reaches after a step."""
    start = 0
    for length, known in zip(LENGTHS, KNOWN, strict=True):
        if step < start + length:
            return [float(s) for s in range(step + 1, start + length + known)]
        start += length
    raise AssertionError


def test_every_later_step_is_a_goal_as_often(data):
    """A step with n later ones has each of them as its goal with probability 1 / n."""
    source, count = data(), 3000
    for step in source.train_steps.tolist():
        goals = source.goals(torch.full((count,), step), source.generator)
        later = later_of(step)
        found, times = goals.goal[:, 0].unique(return_counts=True)
        assert found.tolist() == later and torch.equal(goals.goal[:, 1], -goals.goal[:, 0])
        p = 1 / len(later)
        assert (times / count - p).abs().max() <= 5 * (p * (1 - p) / count) ** 0.5
        assert torch.equal(goals.later, (goals.goal[:, 0] - step).long())


def test_shares_of_goals_are_those_that_were_asked_for(data):
    """A random goal may lie anywhere, a later one only later, the recorded one at 100."""
    source, count = data(future=0.5, random=0.3), 20000
    step = torch.full((count,), 8)  # the first of the last episode: no step before it is later
    goals = source.goals(step, source.generator)
    own, before = (goals.goal[:, 0] == 100).float().mean(), (goals.goal[:, 0] < 8).float().mean()
    used = (source.train_steps < 8).float().mean()  # of all steps that can be a random goal
    later = (goals.later > 0).float().mean()
    for found, p in ((own, 0.2), (before, 0.3 * float(used)), (later, 0.5)):
        assert abs(float(found) - p) < 5 * (p * (1 - p) / count) ** 0.5


@pytest.mark.parametrize("execute", [1, 2])
def test_a_goal_pays_when_it_is_reached_and_ends_the_way(data, execute):
    source = data(execute=execute)
    step = source.train_steps
    for goal in range(18):
        aim = torch.tensor([[goal, -goal]], dtype=torch.float32).expand(len(step), 2)
        batch = source.under(step.long(), aim)
        for row, s in enumerate(step.tolist()):
            left = len(later_of(s)) or 1
            frames = min(execute, left)
            inside = 0 <= goal - s <= frames and (goal == s or goal in later_of(s))
            assert batch.reward[row].item() == pytest.approx(0.9 ** (goal - s) if inside else 0.0)
            expected = 0.0 if inside else 0.9**frames
            assert batch.discount[row].item() == pytest.approx(expected)
        for seen in (batch.obs, batch.next_obs):
            steps = seen.unflatten(-1, (2, 5))
            assert (steps[..., 2] == goal).all() and (steps[..., 3] == -goal).all()
            assert (steps[..., 4] == 7).all() and (steps[..., 0] == -steps[..., 1]).all()


def test_held_out_rows_have_the_same_goals_each_time_and_training_others(data):
    source = data(holdout=0.4, future=0.6, random=0.4)
    one, two = source.held_out(), source.held_out()
    assert torch.equal(one.obs, two.obs) and torch.equal(one.reward, two.reward)
    many = [source.next(None).obs for _ in range(2)]
    assert not torch.equal(*many)
    other = data(holdout=0.4, future=0.6, random=0.4)
    assert torch.equal(other.next(None).obs, many[0])
    assert (source.starts()[:, 2] == 100).all()  # as recorded: a policy is judged there


def test_statistics_of_goals_are_those_of_what_is_achieved(data):
    obs = data().statistics()[0]
    for begin in (0, 5):
        assert torch.equal(obs[:, begin : begin + 2], obs[:, begin + 2 : begin + 4])


def test_waypoints_lie_so_many_steps_ahead_or_are_the_goal(data):
    source = data(Waypoints, way_steps=3, future=0.8, random=0.1, batch_size=500)
    batch = source.next(None)
    here, goal = batch.obs.unflatten(-1, (2, 5))[:, -1, 0], batch.obs[:, 2]
    leads = batch.leads
    assert 0.5 < leads.float().mean() < 0.95
    assert torch.equal(batch.way[leads, 0], torch.minimum(here + 3, goal)[leads])
    assert (goal[leads] > here[leads]).all()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"future": 0.8, "random": 0.3}, "add up to more than 1"),
        ({"reward_norm": "auto"}, "source.reward_norm=auto"),
        ({"goal": [2, 5]}, r"source.goal=\[2, 5\]: an observation has the columns 0 to 4"),
        ({"achieved": []}, r"source.achieved=\[\]"),
        ({"goal": [2]}, "name as many columns, each once"),
        ({"goal": [0, 2]}, "name as many columns, each once"),
    ],
)
def test_columns_and_shares_that_do_not_go_together_are_refused(data, changes, told):
    with pytest.raises(ValueError, match=told):
        data(**changes)
