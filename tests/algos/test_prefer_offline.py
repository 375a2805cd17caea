"""Losses of recorded pairs against closed forms; what they make of a policy."""

from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from rheo.algos.prefer_offline import PreferOffline
from rheo.envs.batch import Compared
from rheo.scripts.config.build import build
from rheo.scripts.config.groups import compose_groups


@pytest.fixture
def learner(flow, generator):
    """A small policy that learns from pairs, as the files of `configs/algo/pairs` set it."""

    def make(name: str, policy: Any = None, **changes: Any) -> PreferOffline:
        node = compose_groups([f"algo=pairs/{name}"], [], [])["algo"] | changes
        held = (
            flow(1, 1, **dict(policy or {})) if not isinstance(policy, torch.nn.Module) else policy
        )
        return build(node, policy=held, generator=generator, executed=None)

    return make


def pairs(rows: int = 32, count: int = 2, labels: bool = False) -> Compared:
    """Uniform chunks whose score is their action, the better one first."""
    draws = torch.Generator().manual_seed(3)
    action = (2 * torch.rand((rows, count, 1, 1), generator=draws) - 1).sort(1, descending=True)[0]
    obs = torch.randn((rows, 1), generator=draws)
    return Compared(obs, action, None if labels else action[:, :, 0, 0])


def moved(algo: PreferOffline) -> PreferOffline:
    """The learner with another policy than its reference."""
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in algo.policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws)
    return algo


def errors(algo: PreferOffline, batch: Compared, group: Any) -> list[torch.Tensor]:
    """Squared velocity errors [R, K] of policy and reference, point by point."""
    found = []
    for policy in (algo.policy, algo.base):
        table = torch.zeros(batch.action.shape[:2])
        for j in range(algo.pairs):
            t, eps = group.t[:, 0, j], group.noise[:, 0, j]
            for k in range(table.shape[1]):
                a, at = batch.action[:, k], t[:, None, None]
                v = policy.velocity(at * a + (1 - at) * eps, t, policy.features(batch.obs))
                table[:, k] += (v - (a - eps)).square().mean((-1, -2)) / algo.pairs
        found.append(table)
    return found


@pytest.mark.parametrize("labels", [False, True])
def test_the_loss_of_pairs_is_that_of_diffusion_dpo(learner, labels):
    """-log sigmoid(beta ((e_ref - e)_winner - (e_ref - e)_loser)), arXiv:2311.12908, eq. 14."""
    algo, batch = moved(learner("dpo", labels="hard", beta=3.0)), pairs(labels=labels)
    group = algo.meet(batch, algo.generator)
    mine, theirs = errors(algo, batch, group)
    ratio = theirs - mine
    expected = -logsigmoid(3.0 * (ratio[:, 0] - ratio[:, 1])).mean()
    torch.testing.assert_close(algo.policy_loss(batch.obs, group)[0], expected)


def test_the_loss_of_chains_is_d3pos_of_their_transitions(learner):
    """The mean over steps of -log sigmoid of the gap of log ratios, arXiv:2311.13231, eq. 9."""
    algo, batch = moved(learner("d3po", {"eta": 1.0, "steps": 3}, beta=0.1)), pairs(labels=True)
    group = algo.meet(batch, algo.generator)
    chain, times, terms = group.chain, algo.policy.times(), []
    assert chain is not None and chain.shape == (32, 2, 4, 1, 1)
    for k in range(3):
        logp = []
        for policy in (algo.policy, algo.base):
            feat = policy.features(batch.obs)[:, None]
            mean, std = policy.step(chain[:, :, k], times[k], times[k + 1], feat, eta=1.0)
            law = torch.distributions.Normal(mean, std.clamp(min=0.05).expand_as(mean))
            logp.append(law.log_prob(chain[:, :, k + 1]).sum((-1, -2)))
        ratio = logp[0] - logp[1]
        terms.append(-logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1])).mean())
    loss, _ = algo.policy_loss(batch.obs, group)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_the_centred_loss_of_labels_is_ipos(learner):
    """(beta / 2)^2 (l_w - l_l - 1 / (2 tau))^2 with tau = beta / 4, arXiv:2310.12036, eq. 17."""
    algo = moved(learner("crd", anchor_coef=0.0, anchor_scaled=False, beta=5.0))
    batch = pairs(labels=True)
    group = algo.meet(batch, algo.generator)
    mine, theirs = errors(algo, batch, group)
    gap = (theirs - mine) @ torch.tensor([1.0, -1.0])
    expected = (5.0 / 2) ** 2 * (gap - 1 / (2 * 5.0 / 4)).square().mean()
    torch.testing.assert_close(
        algo.policy_loss(batch.obs, group)[0], expected, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("name", "policy"), [("crd", {}), ("dpo", {}), ("d3po", {"eta": 1.0})])
@pytest.mark.parametrize("labels", [False, True])
def test_the_first_ratio_is_one(learner, name, policy, labels):
    algo, batch = learner(name, policy), pairs(labels=labels)
    loss, metrics = algo.policy_loss(batch.obs, algo.meet(batch, algo.generator))
    assert metrics["policy/log_ratio"].item() == 0.0
    told = algo.validate(batch, torch.Generator().manual_seed(0))
    assert told["val/accuracy"].item() == 0.5
    if name != "crd":
        assert loss.item() == pytest.approx(0.6931, abs=1e-4)
        assert told["val/loss"].item() == pytest.approx(0.6931, abs=1e-4)


def test_labels_alone_are_taken_as_they_stand_and_returns_are_drawn_from(learner):
    algo = learner("dpo", score_clip=0.5)  # so close that a third of the labels are turned
    told = algo.meet(pairs(4000, labels=True), algo.generator).sign[:, 0, 1]
    drawn = algo.meet(pairs(4000), algo.generator).sign[:, 0, 1]
    assert (told == 1).all()
    assert 0.2 < (drawn < 0).float().mean().item() < 0.45


def test_a_one_step_gaussian_moves_by_slope_times_variance_over_beta(learner):
    """Its transition is N(m(x_0), .05^2), and the tilt by r = g a is N(m + g .05^2 / beta, .05^2).

    r is in deviations of the centred scores; the shift is the same whatever the noise is.
    """
    batch = pairs(64)
    deviation = (batch.action - batch.action.mean(1, keepdim=True)).std(correction=0).item()
    beta = 0.05**2 / deviation / 0.3  # a shift of .3
    algo = learner(
        "crd", {"eta": 1.0, "steps": 1}, ratio="chain", beta=beta, policy_lr=3e-3,
        anchor_coef=0.0, anchor_scaled=False, score_clip=10.0,
    )  # fmt: skip
    for _ in range(400):
        algo.update(batch)
    noise = torch.randn((500, 1, 1), generator=torch.Generator().manual_seed(0))
    obs = torch.randn((500, 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        shift = algo.average.act(obs, noise, clip=False) - algo.base.act(obs, noise, clip=False)
    assert shift.mean().item() == pytest.approx(0.3, abs=0.015)
    assert shift.std().item() < 0.05


WAYS = {
    "crd": ("crd", {"beta": 1.0}),
    "gdro": ("crd", {"beta": 1.0, "loss": "listwise"}),
    "dpo": ("dpo", {"beta": 1.0}),
    "kto": ("dpo", {"beta": 1.0, "loss": "kto", "anchor_coef": 0.1}),
    "mapo": ("dpo", {"loss": "mapo", "labels": "hard"}),
    "d3po": ("d3po", {"beta": 0.1}),
}


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_loss_moves_the_policy_to_the_winners(learner, way, labels):
    name, changes = WAYS[way]
    policy = {"eta": 1.0} if name == "d3po" else {}
    algo = learner(name, policy, **changes, policy_lr=3e-3)
    batch, draws = pairs(64, labels=labels), torch.Generator().manual_seed(5)
    before = algo.deploy(torch.zeros(2000, 1), draws).mean()
    norms = [algo.update(batch)["policy/gradient_norm"].item() for _ in range(60)]
    assert algo.deploy(torch.zeros(2000, 1), draws).mean() > before + 0.1
    told = algo.validate(batch, torch.Generator().manual_seed(0))
    assert told["val/accuracy"] > 0.9 and min(norms) > 0


def test_more_than_two_chunks_are_compared_in_all_their_pairs(learner):
    algo, batch = moved(learner("dpo", labels="hard", beta=1.0)), pairs(16, count=4)
    group = algo.meet(batch, algo.generator)
    mine, theirs = errors(algo, batch, group)
    ratio, terms = theirs - mine, []
    for i in range(4):
        terms += [-logsigmoid(ratio[:, i] - ratio[:, k]) for k in range(i + 1, 4)]
    torch.testing.assert_close(
        algo.policy_loss(batch.obs, group)[0], torch.stack(terms).mean(), rtol=1e-4, atol=1e-5
    )


def test_validation_judges_the_copy_that_is_deployed(learner):
    algo, batch = moved(learner("dpo")), pairs()
    told = algo.validate(batch, torch.Generator().manual_seed(0))
    assert told["val/accuracy"].item() == 0.5  # the average is still the base
    algo.average.load_state_dict(algo.policy.state_dict())
    assert algo.validate(batch, torch.Generator().manual_seed(0))["val/accuracy"].item() != 0.5


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_a_noised_chain_has_the_law_of_the_path_and_of_ddpm(flow, path):
    """Points N(A a, B^2); given the action, transitions are those of `step` with eta 1."""
    policy = flow(1, 1, path=path, steps=4, eta=1.0)
    noise = policy.noise((400_000, 4), torch.Generator().manual_seed(0))
    action = torch.full((400_000, 1, 1), 0.6)
    chain = policy.noised(action, noise)[..., 0, 0]
    c = policy.path.coefficients(policy.times())
    assert torch.equal(chain[:, -1], action[:, 0, 0])
    torch.testing.assert_close(chain.mean(0), c.a * 0.6, rtol=0, atol=6e-3)
    torch.testing.assert_close(chain.std(0), c.b, rtol=0, atol=6e-3)
    for k in range(3):
        here, after = chain[:, k] - c.a[k] * 0.6, chain[:, k + 1] - c.a[k + 1] * 0.6
        slope = (here * after).mean() / here.square().mean()
        feat = policy.features(torch.zeros(1))
        _, std = policy.step(torch.zeros(1, 1), policy.times()[k], policy.times()[k + 1], feat,
                             eta=1.0)  # fmt: skip
        std = std.reshape(())
        kept = (c.b[k + 1].square() - std.square()).sqrt() / c.b[k]
        torch.testing.assert_close(slope, kept, rtol=0, atol=6e-3)
        torch.testing.assert_close((after - slope * here).std(), std, rtol=0, atol=6e-3)


def test_what_has_no_meaning_on_pairs_is_refused(learner, exact_jumps):
    with pytest.raises(ValueError, match="policy.eta=0 with algo.ratio=chain"):
        learner("d3po", {"eta": 0.0})
    with pytest.raises(ValueError, match="acts by jumps"):
        learner("dpo", exact_jumps())
    with pytest.raises(ValueError, match="algo.anchor_coef=0 with algo.loss=kto"):
        learner("dpo", loss="kto")
