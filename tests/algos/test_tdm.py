"""TDM-R1: distribution matching against closed forms, and what it keeps of a clone."""

from types import SimpleNamespace

import pytest
import torch

from rheo.algos.anchors import dmd
from rheo.envs.batch import Batch
from rheo.policies.paths import make_path

F64 = torch.float64


def score(x, t, mean, std):
    """d log p / dx of t a + (1 - t) eps, a ~ N(mean, std^2)."""
    return -(x - t * mean) / (t**2 * std**2 + (1 - t) ** 2)


def pulled(exact_jumps, real, fake, drawn: tuple[torch.Tensor, ...]):
    """The gradient that arrives at samples a [B], and the distance, of two Gaussians' fields."""
    a, noise, t = drawn
    point = a[:, None, None].clone().requires_grad_()
    obs = torch.zeros(len(a), 1, dtype=F64)
    real, fake = exact_jumps(*real), exact_jumps(*fake)
    loss, distance = dmd(point, obs, real, fake, noise[:, None, None], t)
    (grad,) = torch.autograd.grad(loss, point)
    return len(a) * grad.flatten(), distance


@pytest.fixture
def drawn():
    """Samples of N(-0.2, 0.3^2) with noises and times, [B] each."""
    g = torch.Generator().manual_seed(0)
    a, noise = torch.randn((2, 4000), generator=g, dtype=F64)
    return 0.3 * a - 0.2, noise, 0.02 + 0.96 * torch.rand(4000, generator=g, dtype=F64)


def test_nothing_pulls_where_own_and_real_field_are_of_the_same_gaussian(exact_jumps, drawn):
    pull, distance = pulled(exact_jumps, (-0.2, 0.3), (-0.2, 0.3), drawn)
    assert not pull.any() and distance == 0


def test_equal_widths_are_pulled_along_the_difference_of_their_means(exact_jumps, drawn):
    a, noise, t = drawn
    pull, distance = pulled(exact_jumps, (0.4, 0.3), (-0.2, 0.3), drawn)
    assert (pull < 0).all()  # along m_fake - m_real: down the gradient is towards the real one
    x, variance = t * a + (1 - t) * noise, t**2 * 0.09 + (1 - t) ** 2
    gap = (1 - t) ** 2 / variance * (-0.2 - 0.4)
    theirs = 0.4 + t * 0.09 / variance * (x - t * 0.4)
    torch.testing.assert_close(pull, gap / (a - theirs).abs().clamp_min(1e-2))
    torch.testing.assert_close(distance, gap.square().mean())


def test_the_pull_is_the_difference_of_closed_form_scores_and_of_a_divergences_slope(
    exact_jumps, drawn
):
    a, noise, t = drawn
    real, fake = (0.4, 0.5), (-0.2, 0.3)
    pull, _ = pulled(exact_jumps, real, fake, drawn)
    x = t * a + (1 - t) * noise
    scores = score(x, t, *fake) - score(x, t, *real)
    theirs = (x + (1 - t) ** 2 * score(x, t, *real)) / t  # Tweedie
    size = (a - theirs).abs().clamp_min(1e-2)
    torch.testing.assert_close(pull * size, (1 - t) ** 2 / t * scores)
    # t (score_fake - score_real) of own samples is d KL / d mean at every time
    slopes = t * scores - t**2 * (-0.2 - 0.4) / (t**2 * 0.25 + (1 - t) ** 2)
    assert abs(slopes.mean()) < 3 * slopes.std() / len(slopes) ** 0.5


class Modes(torch.nn.Module):
    """The field of a ~ N(+-0.6, 0.15^2), each side as often."""

    path = make_path("linear", None)

    def features(self, obs):
        return obs

    def pred(self, x, t, feat):
        t = t[:, None, None]
        variance = t**2 * 0.15**2 + (1 - t) ** 2
        sides = torch.stack([x - t * side for side in (0.6, -0.6)])
        share = (-sides.square() / (2 * variance)).softmax(0)
        means = torch.tensor([0.6, -0.6])[:, None, None, None]
        means = means + t * 0.15**2 / variance * sides
        return SimpleNamespace(a=(share * means).sum(0))


def batch_of(rows, generator):
    """Transitions of noise."""
    obs, zero = torch.zeros(rows, 1), torch.zeros(rows)
    action = 2 * torch.rand((rows, 1, 1), generator=generator) - 1
    return Batch(obs, action, zero, zero, obs)


@pytest.mark.learns
def test_one_step_learns_two_modes_from_a_field_alone(few_step, critic, learner, generator):
    """No action of the batch is cloned. Of three seeds .75 to .77 lie near a mode, from .40."""
    changes = {"policy_lr": 5e-3, "fake_lr": 1e-2, "ema_rate": 0.1, "lr_floor": 0.1, "eta": 0.0}
    parts = {"policy": few_step(1, 1, width=32), "critic": critic(1, 1, width=8)}
    algo = learner("tdm", 1, 1, **parts, run_updates=200, fake_updates=3, **changes)
    algo.base = Modes()
    batch = batch_of(64, generator)
    distances = [algo.update(batch)["policy/dmd"].item() for _ in range(200)]
    own = algo.deploy(torch.zeros(4000, 1), generator).flatten()
    assert ((own.abs() - 0.6).abs() < 0.3).float().mean() > 0.65
    assert (own < 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert sum(distances[-20:]) < 0.2 * sum(distances[:20])


def moved(policy):
    """The policy with output layers that are not zero, as they start."""
    torch.manual_seed(1)
    torch.nn.init.normal_(policy.net.outlet.weight, std=0.3)
    torch.nn.init.normal_(policy.jump.net.layers[-1].weight, std=0.5)
    return policy


def test_without_matching_it_is_one_step_q_learning(few_step, learner, generator):
    policy = moved(few_step(2, 1))
    ours = learner("tdm", 2, 1, policy=policy, dmd_coef=0.0, clone_coef=1.0)
    theirs = learner("ofql", 2, 1, policy=policy)
    obs, action = torch.randn((32, 2), generator=generator), torch.rand(32, 1, 1)
    draws = ours.draw(32)
    ours.critic.load_state_dict(theirs.critic.state_dict())
    losses = (
        ours.policy_loss(obs, action, draws)[0],
        theirs.policy_loss(obs, action, draws.step)[0],
    )
    torch.testing.assert_close(*losses)
    grads = [
        torch.autograd.grad(loss, list(policy.parameters()), materialize_grads=True)
        for loss in losses
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_real_field_rests_and_the_own_one_follows_as_often_as_asked(
    few_step, learner, generator
):
    algo = learner("tdm", 1, 1, policy=moved(few_step(1, 1)), fake_updates=3)
    before = {name: value.clone() for name, value in algo.base.state_dict().items()}
    own = [value.clone() for value in algo.fake.parameters()]
    metrics = [algo.update(batch_of(16, generator)) for _ in range(2)][-1]
    assert all(torch.equal(value, before[k]) for k, value in algo.base.state_dict().items())
    assert any(not torch.equal(*pair) for pair in zip(own, algo.fake.parameters(), strict=True))
    steps = {int(state["step"]) for state in algo.fake_opt.state.values()}
    assert steps == {6}
    assert {"policy/dmd", "policy/fake", "critic/loss"} <= metrics.keys()
    assert algo.validate(batch_of(16, generator), generator).keys() == {"val/dmd"}
    assert "policy/bc" not in metrics  # nothing is cloned as it ships


def test_the_own_field_is_matched_to_own_actions_in_the_flows_units(exact_jumps, learner):
    """Its loss is least where it is of the policy's own Gaussian, whatever actions are in."""

    def scaled(*law):
        policy = exact_jumps(*law)
        policy.action_norm.kind = "minmax"
        policy.action_norm.shift, policy.action_norm.scale = torch.tensor([[0.1], [0.4]]).double()
        policy.action_norm.ready = True
        return policy

    policy, losses = scaled(-0.2, 0.3), []
    for law in ((-0.2, 0.3), (0.1, 0.3), (-0.2, 0.6)):
        algo = learner("tdm", 1, 1, policy=policy)
        algo.fake = scaled(*law)
        start = policy.noise(4000, torch.Generator().manual_seed(0)).double()
        drawn = algo.law(4000, algo.generator)
        drawn = drawn._replace(noise=drawn.noise.double(), t=drawn.t.double())
        losses.append(algo.fake_loss(torch.zeros(4000, 1, dtype=F64), start, drawn).item())
    assert losses[0] < min(losses[1:])
