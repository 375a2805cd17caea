"""Noises that are annealed from the prior to the posterior, against closed forms and quadrature."""

import math

import pytest
import torch
from bandit import batch_of

from rheo.algos import annealing, estimators
from rheo.algos.annealing import Annealing, Moves, Particles

F64 = torch.float64
MEAN, STD = 0.4, 0.25  # of the Gaussian target
COUNT, L = 200_000, 3


def bell(u):
    """log N(u; MEAN, STD^2), unscaled."""
    return -(u - MEAN).square().sum(-1) / (2 * STD**2)


def rising(u):
    """Towards the wall u = 1, with a dent."""
    return (1.5 * u - 0.6 * torch.sin(3 * u)).sum(-1)


def run(x, A, energy, *, box, spread, count=COUNT, moves=L, step=0.5, seed=0):
    """Proposal and particles at one point x [D], and what their start was."""
    g = torch.Generator().manual_seed(seed)
    x, B = torch.tensor([x], dtype=F64), 1 - A
    scale = torch.full_like(x, A)

    def ask(eps):
        u = ((x - B * eps) / A).detach().requires_grad_()
        value = energy(u)
        grad = torch.autograd.grad(value.sum(), u)[0]
        return Particles(eps, u.detach(), value.detach(), grad, value.detach())

    size = (count, *x.shape)
    uniform = torch.rand(size, generator=g, dtype=F64).clamp(1e-6, 1 - 1e-6)
    bounds = estimators.box_noise(x, scale, torch.full_like(x, B)) if box else None
    drawn = (
        estimators.propose_free(uniform)
        if bounds is None
        else estimators.propose_prior(uniform, *bounds)
    )
    shrink, one = B / scale, torch.ones(x.shape[1], dtype=F64)
    more = annealing.excess(shrink, one, spread * one, box)
    kick = torch.randn((moves, *size), generator=g, dtype=F64)
    chance = torch.rand((moves, *size[:2]), generator=g, dtype=F64)
    start = ask(drawn.eps)
    chain = Annealing(ask, bounds, shrink, more, step)
    return drawn, start, *chain.run(uniform, start, Moves(kick, chance))


def weight(drawn, found):
    """Weights [N] whose mean estimates Z, the integral of prior and exp(E)."""
    log_prior = estimators.log_normal(drawn.eps).sum(-1)
    return (found.energy + log_prior - drawn.log_density).exp()[:, 0]


def near(values, told, deviations=3.0):
    """Whether the mean of independent values is within so many of its deviations."""
    error = deviations * values.std() / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(told, abs=error.item())


def share(drawn, found):
    """Effective share of the particles."""
    return estimators.effective_share(estimators.weights(drawn, found.energy)).item()


# the policy's width is right, three times too large, and half
@pytest.mark.parametrize("spread", [STD, 3 * STD, 0.5 * STD])
def test_a_gaussian_posterior_has_its_evidence_its_mean_and_its_variance(spread):
    A, B, x = 0.4, 0.6, 0.5
    variance = A**2 * STD**2 + B**2
    evidence = A * STD / math.sqrt(variance) * math.exp(-((x - A * MEAN) ** 2) / (2 * variance))
    mean, rest = B * (x - A * MEAN) / variance, A**2 * STD**2 / variance
    drawn, start, moved, found, accepted = run([x], A, bell, box=False, spread=spread)
    w, gap = weight(moved, found), found.eps[:, 0, 0] - mean
    near(w, evidence)
    near(w * gap, 0.0)
    near(w * (gap.square() - rest), 0.0)
    assert (accepted.item() > 0.999) if spread == STD else (0.1 < accepted.item() < 0.8)
    assert share(moved, found) > 1.05 * share(drawn, start)


# intervals of noises left of zero, across it and right of it
@pytest.mark.parametrize("x", [-1.6, 0.2, 1.7])
@pytest.mark.parametrize("step", [0.3, 1.0])
def test_a_posterior_between_walls_has_its_evidence_and_its_mean(x, step):
    A, B = 0.5, 0.5
    drawn, start, moved, found, accepted = run(
        [x], A, rising, box=True, spread=0.3, step=step, moves=4
    )
    assert found.point.abs().max() <= 1 + 1e-9
    u = torch.linspace(-1, 1, 200_001, dtype=F64)
    eps = (x - A * u) / B
    mass = estimators.log_normal(eps) + rising(u[:, None])
    width = 2 * A / B / (len(u) - 1)
    evidence = (mass.logsumexp(0) + math.log(width)).exp().item()
    mean = (mass.softmax(0) * eps).sum().item()
    w = weight(moved, found)
    near(w, evidence)
    near(w * (found.eps[:, 0, 0] - mean), 0.0)
    assert 0.3 < accepted.item() < 0.999
    assert share(moved, found) > share(drawn, start)


@pytest.mark.parametrize(("low", "high"), [(-4.2, -2.2), (-0.6, 1.4), (2.4, 4.4)])
def test_noises_between_walls_change_with_their_scores_as_they_say(low, high):
    bounds = torch.full((1, 1), low, dtype=F64), torch.full((1, 1), high, dtype=F64)
    chain = Annealing(lambda eps: pytest.fail("asked"), bounds, bounds[0], bounds[0], 0.5)
    z, tiny = torch.linspace(-2.5, 2.5, 11, dtype=F64)[:, None, None], 1e-5
    eps = chain.noise(z)
    slope = (chain.noise(z + tiny) - chain.noise(z - tiny)) / (2 * tiny)
    torch.testing.assert_close(chain.stretch(z, eps), slope, rtol=1e-5, atol=1e-8)
    # and they are quantiles of the prior: as many of it lie below as the score says
    flip = torch.sign(slope)
    below = torch.special.ndtr(eps) - torch.special.ndtr(bounds[0])
    told = below / (torch.special.ndtr(bounds[1]) - torch.special.ndtr(bounds[0]))
    torch.testing.assert_close(told, torch.special.ndtr(flip * z), rtol=1e-6, atol=1e-9)


def test_moves_leave_fewer_errors_where_the_prior_seldom_meets_the_target():
    """Six actions of a narrow target, sixteen particles: root mean square errors of the mean."""
    x, A = [0.45, 0.1, 0.3, 0.2, -0.1, 0.5], 0.5
    variance = A**2 * STD**2 + 0.25
    mean = 0.5 * (torch.tensor(x, dtype=F64) - A * MEAN) / variance
    errors = []
    for seed in range(40):
        drawn, start, moved, found, _ = run(
            x, A, bell, box=False, spread=STD, count=16, moves=4, seed=seed
        )
        sides = ((drawn, start), (moved, found))
        means = [estimators.noise_mean(estimators.weights(p, f.energy), f.eps) for p, f in sides]
        errors.append([(each - mean).square().mean().item() for each in means])
    before, after = torch.tensor(errors).mean(0).sqrt().tolist()
    assert after < 0.6 * before


def policy_step(flow, learner, generator, **changes):
    """Loss, metrics and gradient of a policy step of `rfm_box`, and the generator's next number."""
    torch.manual_seed(0)
    algo = learner("rfm_box", 2, 3, policy=flow(2, 3), particles=7, **changes)
    batch = batch_of(16, 2, 3, generator)
    loss, metrics, _ = algo.policy_loss(batch.obs, batch.action, algo.draw(16), algo.T())
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in algo.policy.parameters() if p.grad is not None])
    return loss, metrics, gradient, torch.rand(4, generator=algo.generator)


@pytest.mark.parametrize("estimator", ["noise", "combined"])
def test_without_moves_particles_are_those_of_the_prior_to_the_last_bit(
    flow, learner, caplog, estimator
):
    sides = []
    for changes in ({"proposal": "truncated"}, {"proposal": "annealed", "anneal_moves": 0}):
        g = torch.Generator().manual_seed(3)
        sides.append(policy_step(flow, learner, g, estimator=estimator, **changes))
    one, other = sides
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][key], other[1][key]) for key in one[1])
    assert all(torch.equal(one[i], other[i]) for i in (0, 2, 3))
    assert "anneal_moves=0: particles stay where algo.proposal=truncated" in caplog.text


def test_moves_of_mirrored_particles_are_mirrored(flow, learner):
    algo = learner("rfm_box", 2, 3, policy=flow(2, 3), particles=7, proposal="annealed")
    draws = algo.draw(5)
    kick, chance = draws.moves
    assert kick.shape == (4, 7, 5, 3) and chance.shape == (4, 7, 5)
    assert torch.equal(kick[:, 1::2], -kick[:, :6:2])
    assert torch.equal(chance[:, 1::2], chance[:, :6:2])
    assert kick.std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", ["rfm", "rfm_box", "rfm_paper", "sdac", "flame", "rfm_offline"])
def test_every_algorithm_that_estimates_can_anneal(flow, learner, generator, name):
    changes = {"proposal": "annealed", "anneal_moves": 2}
    more = {"reverse": changes} if name == "rfm_offline" else {**changes, "policy_every": 1}
    more |= {"policy": flow(2, 2, squash="tanh")} if name in ("rfm", "rfm_paper") else {}
    algo = learner(name, 2, 2, **more)
    metrics = algo.update(batch_of(32, 2, 2, generator))
    told = [metrics[f"rfm/accepted_{i}"].item() for i in range(3)]
    assert all(math.isfinite(value) for value in told) and 0 < max(told) <= 1
    assert all(value.isfinite() for value in metrics.values())
