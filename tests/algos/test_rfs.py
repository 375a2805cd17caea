"""Noise and corrections of a frozen base together, on a base whose map is known in closed form."""

from typing import Any

import pytest
import torch
from hills import Hill
from torch import nn

from rheo.algos.dsrl import DSRL
from rheo.algos.rfs import RFS
from rheo.envs.batch import Batch
from rheo.policies.coded import NoiseMap, coded_critic, coded_gaussian
from rheo.policies.editor import Editor

SPREAD, BOUND, SCALE = 0.2, 1.5, 0.15
FARTHEST = SPREAD * BOUND  # what noise alone reaches
GOAL = FARTHEST + 0.8 * SCALE


class Base(nn.Module):
    """a = SPREAD w."""

    def __init__(self):
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(SPREAD))

    def act(self, obs, noise):
        return self.spread * noise


@pytest.fixture
def made(settings):
    """Makes a small RFS, or DSRL on the same parts: `made(kind=RFS, **changes)`."""

    def make(kind=RFS, scale=SCALE, critic=None, **changes: Any) -> Any:
        torch.manual_seed(0)
        small: dict[str, Any] = {"width": 32, "depth": 1, "activation": "tanh"}
        judge = {**small, "members": 2, "layer_norm": False, "rows": 1}
        heads = {**small, "log_std_min": -5.0, "log_std_max": 2.0}
        own = dict(settings("rfs", relative=False, base_cache=0, ema_rate=1.0))
        parts = ("noise_map", "actor", "noise_critic", "editor")
        values = {key: value for key, value in own.items() if key not in parts}
        if kind is RFS:
            values["editor"] = Editor(2, 1, 1, scale=scale, **heads)
        else:
            values = {k: v for k, v in values.items() if k not in RFS.__annotations__}
        return kind(
            Base(),
            coded_critic(2, 1, **judge) if critic is None else critic,
            torch.Generator().manual_seed(0),
            coded_gaussian(2, 1, rows=1, **heads),
            NoiseMap(1, kind="interpolated", rows=1, bound=BOUND),
            coded_critic(2, 1, **judge),
            **{**values, **changes},
        )

    return make


def batch_of(rows=64):
    generator = torch.Generator().manual_seed(1)
    obs, ahead = torch.randn((2, rows, 2), generator=generator)
    action = torch.rand((rows, 1, 1), generator=generator) - 0.5
    return Batch(obs, action, torch.ones(rows), torch.full((rows,), 0.9), ahead)


def test_without_room_for_corrections_it_acts_as_dsrl(made):
    rfs, dsrl = made(scale=0.0), made(DSRL)
    obs = torch.randn(20, 2)
    for algo in (rfs, dsrl):
        algo.updates = 1
    dsrl.actor.load_state_dict(rfs.actor.state_dict())
    ways = [a.deploy(obs, torch.Generator().manual_seed(3)) for a in (rfs, dsrl)]
    torch.testing.assert_close(*ways)
    for algo in (rfs, dsrl):
        algo.generator.manual_seed(5)
    torch.testing.assert_close(rfs.act(obs).action, dsrl.act(obs).action)


def test_what_is_kept_is_what_is_executed_and_nothing_is_corrected_before_it_learns(made):
    algo, obs = made(), torch.randn(200, 2)
    before = algo.act(obs)
    algo.generator.manual_seed(0)
    assert torch.equal(before.action, algo.base.act(obs, algo.base.prior(200, algo.generator)))
    algo.updates = 1
    coded = algo.act(obs)
    assert torch.equal(coded.action, coded.kept)
    assert coded.action.abs().max() > FARTHEST + 0.01
    assert coded.action.abs().max() <= FARTHEST + SCALE + 1e-6


def test_a_target_values_the_corrected_answer_with_the_entropy_of_noise_and_correction(made):
    algo, batch = made(alpha=0.3, edit_alpha=0.7), batch_of()
    for p in algo.target.parameters():
        p.data += 0.1
    algo.updates, state = 1, algo.generator.get_state()
    found = algo.update(batch)["critic/loss"]
    again = made(alpha=0.3, edit_alpha=0.7)  # before that step
    for p in again.target.parameters():
        p.data += 0.1
    again.generator.set_state(state)
    with torch.no_grad():
        code, logp = again.actor.draw(batch.next_obs, again.actor.noise(64, again.generator))
        base = SPREAD * BOUND * code
        delta, edit_logp = again.editor.delta.sample(
            torch.cat([batch.next_obs, base[:, :, 0]], -1),
            again.editor.noise(64, again.generator),
        )
        normal = torch.distributions.Normal(0.0, 1.0)
        prior = normal.log_prob(BOUND * code).sum((-1, -2)) + torch.tensor(BOUND).log()
        value = again.target(batch.next_obs, (base + SCALE * delta).clamp(-1, 1)).amin(0)
        value = value + 0.3 * (prior - logp.sum((-1, -2))) - 0.7 * edit_logp
        goal = batch.reward + 0.9 * value
        expected = 0.5 * (again.critic(batch.obs, batch.action) - goal).square().mean(1).sum()
    torch.testing.assert_close(found, expected)


def test_the_noise_critic_learns_what_noise_is_worth_with_its_correction(made, monkeypatch):
    """Answers that it is shown lie off the base's, by no more than a correction reaches."""
    algo, seen = made(), []
    loss = algo.distill_loss

    def watch(obs, code, action, ahead):
        seen.append((code, action))
        return loss(obs, code, action, ahead)

    monkeypatch.setattr(algo, "distill_loss", watch)
    algo.update(batch_of())
    ((code, action),) = seen
    gap = (action - SPREAD * BOUND * code).abs()
    assert code.shape[1] == 5 and gap.amax((0, 2, 3)).min() > 0.05 and gap.max() < SCALE + 1e-6


@pytest.mark.learns
def test_what_noise_cannot_reach_the_correction_adds(made):
    rates = {"policy_lr": 1e-2, "edit_lr": 1e-2, "critic_lr": 1e-2, "alpha_lr": 1e-2}
    narrow = {"alpha": 0.02, "edit_alpha": 0.02, "target_per_dim": -2.0, "entropy_per_dim": -2.0}
    algo = made(critic=Hill(GOAL, sharp=20.0), **rates, **narrow)
    for _ in range(150):
        algo.update(batch_of(128))
    obs, generator = torch.randn(500, 2), torch.Generator().manual_seed(0)
    plain = SPREAD * BOUND * algo.sampled(obs, generator)[0]
    found = algo.deploy(obs, generator)
    assert plain.mean() > 0.5 * FARTHEST  # the noise goes that way too
    assert (found - GOAL).abs().mean() < 0.5 * (plain - GOAL).abs().mean()


@pytest.mark.parametrize("changes", [{"latent_gradient": True}])
def test_a_gradient_through_the_base_is_refused(made, changes):
    with pytest.raises(ValueError, match="leave these as they are"):
        made(**changes)
