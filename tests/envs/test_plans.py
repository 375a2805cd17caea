"""Windows as plans: states beside actions, labels and how strong they are, against plain loops."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs import datasets, plans
from rheo.envs.plans import Plans, strengths
from rheo.errors import EnvError

LENGTHS = [1, 7, 2, 12, 3, 5]
STEPS = sum(LENGTHS)
T, GAMMA = 4, 0.9
SETTINGS = {
    "batch_size": 6, "holdout": 0.0, "obs_steps": 1, "on_bad": "refuse", "action_scale": "auto",
    "big": False, "storage": "ram", "obs_keys": None, "filter": None, "time_limit": None,
    "labels": ["return"], "gamma": GAMMA, "pair_batches": 0, "judged": None,
}  # fmt: skip


def episodes():
    """Start and end of each episode."""
    ends = np.cumsum(LENGTHS)
    return list(zip(ends - LENGTHS, ends, strict=True))


@pytest.fixture
def rows():
    """Numbers that tell their step; every other episode is ended by the task, the others cut."""
    ends = np.cumsum(LENGTHS)
    terminals = np.zeros(STEPS, bool)
    terminals[ends[::2] - 1] = True
    rng = np.random.default_rng(0)
    return {
        "observations": np.arange(STEPS)[:, None] + np.array([0.0, 1000.0]),
        "actions": np.arange(STEPS)[:, None] / 100 + np.zeros(3),
        "rewards": rng.normal(size=STEPS).astype(np.float32),
        "terminals": terminals,
        "episode_ends": ends,
    }


@pytest.fixture
def read(tmp_path, rows):
    """Reads the rows, some of them changed or left out (None), with changed settings."""

    def make(changed=None, seed=0, **changes):
        content = {k: v for k, v in {**rows, **(changed or {})}.items() if v is not None}
        np.savez(tmp_path / "data.npz", **content)
        settings = {**SETTINGS, **changes}
        path, generator = str(tmp_path / "data.npz"), torch.Generator().manual_seed(seed)
        return Plans(generator, T, path=path, **settings)

    return make


@pytest.mark.parametrize("obs_steps", [1, 3])
def test_a_window_holds_the_states_of_its_actions_and_none_of_another_episode(read, obs_steps):
    data = read(obs_steps=obs_steps)
    batch = data.rows(torch.arange(STEPS))
    for begin, end in episodes():
        for step in range(begin, end):
            future = [min(step + k, end - 1) for k in range(T)]
            assert batch.state[step, :, 0].tolist() == future
            assert batch.action[step, :, 0].tolist() == pytest.approx([f / 100 for f in future])
            assert batch.inside[step].tolist() == [step + k < end for k in range(T)]
    assert torch.equal(batch.obs[:, -2:], batch.state[:, 0])


def test_a_return_is_what_is_left_of_the_episode_and_goes_on_where_that_was_cut(read, rows):
    data = read()
    for k, (begin, end) in enumerate(episodes()):
        for step in range(begin, end):
            powers = GAMMA ** np.arange(end - step)
            wanted = (powers * rows["rewards"][step:end]).sum()
            if k % 2:  # as if the mean of these rewards, so weighted, came for ever
                wanted = wanted / powers.sum() / (1 - GAMMA)
            assert float(data.amount[step, 0]) == pytest.approx(wanted)


def test_a_column_is_a_mean_over_the_window(read):
    data = read(labels=["obs1", "return", "obs0"])
    assert data.amount.shape == data.strength.shape == (STEPS, 3)
    for begin, end in episodes():
        for step in range(begin, end):
            inside = np.arange(step, min(step + T, end)).mean()
            assert data.amount[step, [0, 2]].tolist() == pytest.approx([1000 + inside, inside])


def test_a_strength_is_the_share_of_training_windows_with_less():
    amount = torch.tensor([[3.0], [1.0], [2.0], [2.0], [9.0], [-1.0]])
    among = torch.tensor([0, 1, 2, 3])
    found = strengths(amount, among)[:, 0].tolist()
    assert found == [0.875, 0.125, 0.5, 0.5, 1.0, 0.0]


def test_no_label_is_a_label_too_and_needs_no_rewards(read):
    batch = read({"rewards": None, "terminals": None}, labels=[]).rows(torch.arange(5))
    assert batch.strength.shape == (5, 0)


@pytest.mark.parametrize("task", sorted(plans.WALKERS))
def test_heights_and_speeds_are_where_the_robots_observations_have_them(task):
    env: Any = gymnasium.make(f"{task}-v4").unwrapped
    env.reset(seed=0)
    obs = [env.step(env.action_space.sample())[0] for _ in range(5)][-1]
    forward = env.data.qvel[0]
    up = env.data.qpos[1 if task in ("Hopper", "HalfCheetah", "Walker2d") else 2]
    known = plans.WALKERS[task]
    assert obs[known["speed"]] == pytest.approx(np.clip(forward, -10, 10))
    assert "height" not in known or obs[known["height"]] == pytest.approx(up)


def test_a_robots_labels_are_known_by_the_file_and_others_are_refused(read):
    hopper = {"observations": np.random.default_rng(0).normal(size=(STEPS, 11))}
    named = {"attributes": np.array('{"env_id": "Hopper-v4"}')}
    data = read(hopper | named, labels=["speed", "height", "obs5"])
    assert torch.equal(data.amount[:, 0], data.amount[:, 2])
    with pytest.raises(ValueError, match="spead is no label.*Hopper-v4; choose return, height, sp"):
        read(hopper | named, labels=["spead"])
    with pytest.raises(ValueError, match="does not name; choose return, or .* obs0 to obs10"):
        read(hopper, labels=["speed"])
    with pytest.raises(ValueError, match="obs0 to obs1"):
        read(labels=["obs2"])
    with pytest.raises(ValueError, match="no rewards.*source.labels=.., or use algo=bc"):
        read({"rewards": None, "terminals": None})


def test_the_first_batches_come_in_pairs(read):
    data = read(pair_batches=3, labels=["obs0", "return"])
    for _ in range(3):
        batch = data.next(None)
        assert len(batch.obs) == 6 and batch.more.shape == (6, 2)
        for i in range(6):
            gap = batch.strength[i] - batch.strength[(i + 3) % 6]
            assert batch.more[i].tolist() == gap.sign().tolist()
    assert data.next(None).more is None
    assert len(read(pair_batches=1, batch_size=7).next(None).obs) == 6


def test_what_validates_takes_no_more_memory_than_a_dataset_may(read, monkeypatch):
    data = read(holdout=0.9)
    every = len(data.held_steps)
    monkeypatch.setattr(datasets, "HELD_BYTES", 4 * (2 + T * 2) * (every // 2))
    assert every // 3 <= len(data.held_out().obs) <= every // 2


@pytest.fixture
def compared(tmp_path):
    """Writes comparisons of windows, some of their arrays changed or left out (None)."""

    def write(**changed):
        rng = np.random.default_rng(1)
        content: dict[str, Any] = {
            "first": rng.integers(0, STEPS, 40),
            "second": rng.integers(0, STEPS, 40),
            "more": rng.integers(-1, 2, (40, 2)),
        }
        content |= changed
        np.savez(tmp_path / "c.npz", **{k: v for k, v in content.items() if v is not None})
        return str(tmp_path / "c.npz"), content

    return write


def test_peoples_comparisons_stand_in_place_of_what_is_measured(read, compared):
    file, told = compared()
    data = read(pair_batches=4, judged=file, labels=["brave", "calm"], batch_size=16)
    known = {
        (int(a), int(b), *map(int, more))
        for a, b, more in zip(told["first"], told["second"], told["more"], strict=True)
    }
    for _ in range(4):
        batch = data.next(None)
        step, more = batch.obs[:, 0].long().tolist(), batch.more.long().tolist()
        found = {(step[i], step[i + 8], *more[i]) for i in range(8)}
        assert found <= known
        assert torch.equal(batch.more[:8], -batch.more[8:]) and batch.strength is None
    assert data.next(None).more is None
    alone = compared(more=told["more"][:, 0])[0]
    assert read(judged=alone, labels=["brave"]).more.shape == (40, 1)


def test_comparisons_are_a_part_of_what_a_run_goes_on_with(read, compared):
    file, told = compared()
    words = {"judged": file, "labels": ["brave", "calm"]}
    state = read(**words).state_dict()
    compared(more=-told["more"])
    with pytest.raises(EnvError, match="changed since the run was saved"):
        read(**words).load_state_dict(state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"more": None}, "no key 'more'; it holds first, second"),
        ({"more": np.ones((40, 3))}, r"more.* shape \(40, 3\).*expected numbers \(40, 2\)"),
        ({"more": np.ones(40)}, r"more.* shape \(40,\)"),
        ({"more": np.full((40, 2), 2)}, "more.*row 0: not 1, 0 or -1"),
        (
            {"second": np.full(40, STEPS)},
            f"second.*row 0: no step of the recording, 0 to {STEPS - 1}",
        ),
        ({"first": np.full(40, 0.5)}, "first.*row 0: no step"),
        ({"first": np.full(40, np.nan)}, "first.*row 0: no step"),
        ({"second": np.arange(3)}, r"second.* shape \(3,\).*expected numbers \(40,\)"),
        ({"first": np.array(["a"] * 40)}, "first.*type <U1, expected numbers"),
    ],
)
def test_comparisons_that_are_none_are_refused(read, compared, changed, message):
    file, _ = compared(**changed)
    with pytest.raises(ValueError, match=f"source.judged=.*{message}"):
        read(judged=file, labels=["brave", "calm"])


def test_comparisons_need_every_episode_that_they_count(read, compared, rows):
    broken = {"actions": rows["actions"].copy()}
    broken["actions"][3] = np.nan
    with pytest.raises(ValueError, match="episodes are dropped; set data.on_bad=refuse"):
        read(broken, judged=compared()[0], labels=["brave", "calm"], on_bad="drop")


def test_a_sampler_of_plans_goes_on_where_it_was(read):
    data = read(pair_batches=2)
    data.next(None)
    state = data.state_dict()
    wanted = [data.next(None) for _ in range(3)]
    other = read(pair_batches=2, seed=1)
    other.load_state_dict(state)
    for batch in wanted:
        for one, two in zip(batch, other.next(None), strict=True):
            assert one is two is None or torch.equal(one, two)
