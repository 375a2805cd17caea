"""Where a row stands in a batch decides nothing: neither its times nor what is learned from it."""

import numpy as np
import pytest
import torch

from rheo.algos import losses
from rheo.algos.meanflow import MeanFlow
from rheo.algos.shortcut import Shortcut
from rheo.envs.batch import Batch, Windows
from rheo.envs.chunk import ChunkEnv
from rheo.envs.datasets import Transitions
from rheo.envs.mixed import Mixed
from rheo.envs.sources import Replay
from rheo.envs.suites import make

MATCHING = ["bc", "iql", "awm", "dql", "dac", "fisor", "fql", "rfm_offline", "expo", "rfm_box",
            "qsm", "qam", "parl", "cfgrl"]  # fmt: skip
CLONES = {"qam": "behaviour"}  # which clone by a part of their own, whose average is "slow"
ONLINE = ("expo", "rfm_box", "qsm")  # which have no validation
ROWS = 256


def test_times_of_rows_hold_one_in_each_part_in_an_order_without_meaning(generator):
    place = torch.arange(100.0)
    for _ in range(20):
        t = losses.row_times(100, generator, 0.2, 0.7)
        assert ((t - 0.2) / 0.005).floor().unique().numel() >= 97  # rounding may cross a border
        assert abs(torch.corrcoef(torch.stack([place, t]))[0, 1]) < 0.4  # 4 deviations; 1 in order
    assert losses.row_times(0, generator).shape == (0,)


def batch_of(rows=ROWS):
    """Transitions of noise."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn((rows, 2), generator=generator)
    action = 2 * torch.rand((rows, 1, 1), generator=generator) - 1
    zeros = torch.zeros(rows)
    return Batch(obs, action, zeros, torch.full((rows,), 0.9), obs, zeros)


class Watch:
    """The times [ROWS] that a policy's network was asked at, one per row of a batch."""

    def __init__(self, policy, rows=ROWS):
        self.seen, self.rows = [], rows
        getattr(policy.net, "net", policy.net).time.register_forward_pre_hook(self)

    def __call__(self, module, given):
        (t,) = given
        if t.shape == (self.rows,) and t.unique().numel() > 1:
            self.seen.append(t)

    def correlation(self):
        """The largest correlation of a time with its row's place."""
        assert self.seen
        place = torch.arange(float(self.rows))
        return max(abs(torch.corrcoef(torch.stack([place, t]))[0, 1].item()) for t in self.seen)


@pytest.mark.parametrize("name", MATCHING)
def test_a_matching_loss_meets_every_row_of_a_batch_at_any_time(learner, name):
    rows = {"rfm_box": {"policy_batch": ROWS}, "rfm_offline": {"policy_batch": ROWS},
            "parl": {"policy_batch": ROWS}}  # fmt: skip
    algo = learner(name, 2, 1, **rows.get(name, {}))
    watch = Watch(getattr(algo, CLONES.get(name, "policy")))
    for _ in range(2):
        algo.update(batch_of())
    assert watch.correlation() < 0.3  # 5 standard deviations; in order it is 1


@pytest.mark.parametrize("name", [n for n in MATCHING if n not in ONLINE])
def test_a_validation_meets_the_rows_of_every_episode_at_any_time(learner, name):
    algo = learner(name, 2, 1)
    watch = Watch(getattr(algo, "slow" if name in CLONES else "average", algo.policy))
    algo.validate(batch_of(), torch.Generator().manual_seed(0))
    assert watch.correlation() < 0.3


def episodes(rows=20_000):
    """Windows of two episodes: of wide actions that the noise hides, then of one known action."""
    wide = torch.arange(rows) < rows // 2
    action = torch.where(wide, torch.randn(rows, generator=torch.Generator().manual_seed(2)), 0.0)
    obs = wide.float()[:, None]
    return Windows(obs, action[:, None, None].clamp(-1, 1), torch.ones((rows, 1), dtype=torch.bool))


def both_orders(algo, kind):
    """Every held-out loss, of the episodes in either order: {name: (one, other)}."""
    data = episodes()
    if kind is Batch:
        nothing = torch.zeros(len(data.obs))
        data = Batch(data.obs, data.action, nothing, nothing, data.obs)
    flipped = data.take(torch.arange(len(data.obs)).flip(0))
    one, other = (algo.validate(d, torch.Generator().manual_seed(0)) for d in (data, flipped))
    return {name: (one[name].item(), other[name].item()) for name in one}


@pytest.mark.parametrize("name", ["bc", "shortcut", "meanflow", "ofql"])
def test_a_validation_does_not_depend_on_which_episode_comes_first(
    flow, few_step, settings, learner, generator, name
):
    torch.manual_seed(0)
    if name in ("bc", "ofql"):
        algo = learner(name, 1, 1)
    else:
        kind = {"shortcut": Shortcut, "meanflow": MeanFlow}[name]
        algo = kind(few_step(1, 1), generator, 100, **settings(name))
    torch.nn.init.normal_(algo.average.net.outlet.weight, std=0.3)  # an untrained field is 0
    for loss, (one, other) in both_orders(algo, Batch if name == "ofql" else Windows).items():
        # noise of 10,000 rows, a quarter of which learn jumps, the longest of them few; paired with
        # places they are mostly 10 to 60 % apart, and the jumps by their own size and more
        assert one == pytest.approx(other, rel=0.2 if loss == "val/jump_loss" else 0.06)


def two_sources(path, batch_size=64, share=0.5):
    """A replay of Pendulum-v1 beside recorded steps: actions of -0.5 there and of 0.5 here."""
    steps = 100
    obs = np.full((steps, 3), 7.0, np.float32)  # no pendulum's
    obs[40:, 1], obs[:, 2] = 8.0, np.arange(steps)
    np.savez(
        path,
        observations=obs,
        next_observations=obs + np.eye(3, dtype=np.float32)[2],
        actions=np.full((steps, 1), 0.5, np.float32),
        rewards=np.arange(steps) / 100,
        episode_ends=np.array([40, steps]),
    )
    env = ChunkEnv(make("Pendulum-v1", 2), execute=1, obs_steps=1, gamma=0.9)
    env.reset(0)
    generator = torch.Generator().manual_seed(0)
    replay = Replay(
        env, generator, 1, capacity=1000, batch_size=8, warmup=64, update_ratio=2.0,
        warmup_policy=True,
    )  # fmt: skip
    data = Transitions(
        generator, 1, path=str(path), batch_size=8, holdout=0.0, obs_steps=1, on_bad="refuse",
        storage="ram", obs_keys=None, filter=None, action_scale="auto", time_limit=None, big=False,
        execute=1, n_step=1, gamma=0.9,
        reward_norm="none",
    )  # fmt: skip
    shown = {"shown_share": 0.0, "shown_until": 1}
    return Mixed(replay, data, batch_size=batch_size, offline_share=share, **shown)


def left(obs):
    """What the replay acts: -0.5 everywhere."""
    return torch.full((len(obs), 1, 1), -0.5)


def test_the_first_rows_of_a_mixed_batch_come_from_both_sources_in_their_shares(tmp_path):
    source = two_sources(tmp_path / "data.npz", share=0.25)
    found = []
    for _ in range(100):
        batch = source.next(left)
        recorded = batch.action.flatten() > 0
        assert int(recorded.sum()) == 16
        found.append(recorded[:16].float().mean().item())
        rows = batch.take(recorded.nonzero().flatten())  # every column was shuffled alike
        torch.testing.assert_close(rows.reward, rows.obs[:, 2] / 100)
        torch.testing.assert_close(rows.next_obs[:, 2], rows.obs[:, 2] + 1)
    # 1600 rows of a share of 1/4: a standard deviation of 0.01
    assert np.mean(found) == pytest.approx(0.25, abs=0.05)
    assert np.std(found) > 0.03


def test_a_memo_goes_where_its_row_goes():
    batch = batch_of(4)._replace(memo=torch.arange(8.0).view(4, 2, 1))
    order = torch.tensor([3, 0, 2])
    picked = batch.take(order)
    assert picked.memo is not None and picked.memo[:, 0, 0].tolist() == [6.0, 0.0, 4.0]
    assert torch.equal(picked.obs, batch.obs[order]) and batch.take(order[:1]).reward.shape == (1,)
    assert batch_of(4).take(order).memo is None


@pytest.mark.learns
@pytest.mark.parametrize("shuffled", [True, False], ids=["mixed", "in order"])
def test_a_clone_of_two_sources_holds_both(learner, tmp_path, shuffled):
    """Half the rows at -0.5 and half at 0.5, whether they come shuffled or one after the other.

    With the replay's rows matched at early times only, all of the flow's mass went to 0.5: a
    share of 0.000 and a deviation of 0.02. Five seeds reach 0.49 to 0.52, and 0.36 to 0.43.
    """
    torch.manual_seed(0)
    source = two_sources(tmp_path / "data.npz", batch_size=256)
    algo = learner("bc", 3, 1, lr=3e-3, ema_rate=0.05, run_updates=300)
    for _ in range(300):
        batch = source.next(left)
        if not shuffled:
            batch = batch.take(batch.action.flatten().sort(stable=True).indices)
        algo.update(batch._replace(obs=torch.zeros_like(batch.obs)))
    sample = algo.deploy(torch.zeros(4000, 3), torch.Generator().manual_seed(0)).flatten()
    assert (sample < 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert sample.std() > 0.2
