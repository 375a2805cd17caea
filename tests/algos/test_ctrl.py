"""A clone asked by label against closed forms: a tilt, a pair of normals, frequencies."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos import adjoint
from rheo.algos.ctrl import Asked
from rheo.algos.walks import at
from rheo.envs.batch import Labelled
from rheo.policies.labelled import LabelledPolicy
from rheo.policies.steer import Chain, Settings

MEAN, SPREAD = 0.5, 0.15  # the two normals are N(+-MEAN, SPREAD^2), as often each


class Logits(nn.Module):
    """Logits 0 and slope * a - low, of one action in one dimension."""

    members = 2

    def __init__(self, slope: float, low: float = 0.0) -> None:
        super().__init__()
        self.slope, self.low = nn.Parameter(torch.tensor(slope)), low

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        total = self.slope * action.sum((-2, -1)) - self.low
        return torch.stack([torch.zeros_like(total), total])


def labelled(flow: Any, **changes: Any) -> Any:
    """A small policy of two labels over a plain flow's network."""
    policy = flow(1, 1, labels=2, label=1, **changes)
    assert isinstance(policy, LabelledPolicy)
    return policy


def small(learner: Any, policy: Any, critic: Any, **changes: Any) -> Any:
    return learner("ctrl", 1, 1, policy=policy, critic=critic, **changes)


def pair(rows: int, generator: torch.Generator) -> Labelled:
    """Actions of the two normals, each labelled by its own; one observation that says nothing."""
    label = torch.randint(2, (rows,), generator=generator)
    action = torch.randn(rows, generator=generator) * SPREAD + MEAN * (2 * label - 1)
    return Labelled(torch.zeros(rows, 1), action.clamp(-1, 1).view(-1, 1, 1), label)


@cache
def pair_weights(make: Any) -> dict[str, torch.Tensor]:
    """Weights of a small flow that is matched to the mixture of the two."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = labelled(make)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(400):
        batch = pair(256, generator)
        t = torch.rand(256, generator=generator)
        noise = policy.noise(256, generator)
        loss = policy.match(batch.obs, batch.action, noise, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nn.init.zeros_(policy.vectors)
    return policy.state_dict()


@pytest.mark.parametrize("kernel", adjoint.KERNELS)
def test_a_rare_label_tilts_by_its_logit_and_a_sure_one_by_nothing(learner, flow, kernel):
    """log p(1 | a) is slope * a up to a constant where p(1 | a) is next to 0, log p(0 | a) is 0."""
    policy = labelled(flow, steps=6)
    nn.init.normal_(policy.net.outlet.weight, std=0.3)
    judge: Any = Logits(0.8, 60.0)
    algo = small(learner, policy, judge, kappa=1.5, kernel=kernel, clip_gradient=False)
    obs, label = torch.randn(40, 1), torch.arange(40) % 2
    met = algo.meet(obs, label)
    assert float(met.moved[:, label == 0].abs().max()) < 1e-20
    base, steps = at(algo.base, algo.base.features(obs)), algo.steps()
    x = torch.cat([met.x, torch.zeros_like(met.x[:1])])  # where a walk ends no Jacobian is asked
    fixed = adjoint.back(steps, base, x, torch.full((40, 1, 1), -1.5 * 0.8))
    torch.testing.assert_close(met.moved[:, label == 1], (-steps.shift * fixed)[:, label == 1])
    torch.testing.assert_close(met.velocity, base(met.x, steps.t[..., 0, 0]))


def test_at_its_target_the_loss_is_none_and_each_label_moves_its_own_vector(learner, flow):
    policy = labelled(flow, steps=4)
    nn.init.normal_(policy.net.outlet.weight, std=0.3)
    judge: Any = Logits(2.0)
    algo = small(learner, policy, judge)
    obs, label = torch.randn(30, 1), torch.ones(30, dtype=torch.long)
    action = torch.rand(30, 1, 1)
    likely = torch.stack([algo.height(obs, action, each).exp() for each in (label, 1 - label)])
    torch.testing.assert_close(likely.sum(0), torch.ones(30))
    torch.testing.assert_close(likely[0], (2 * action.flatten()).sigmoid())
    met = algo.meet(obs, label)
    field = algo.field(obs, label)(met.x, algo.steps().t[..., 0, 0])
    there = met._replace(moved=(field - met.velocity).detach())
    assert algo.tuned_loss(obs, label, there)[0].item() == 0.0
    loss, drift = algo.tuned_loss(obs, label, met)
    loss.backward()
    vectors = policy.vectors.grad
    assert drift.item() == 0 and not vectors[0].any() and vectors[1].any()


@pytest.mark.learns
def test_each_label_acts_by_its_normal_of_the_pair(learner, flow, critic):
    """p(a | y) of a mixture of two normals is the one of them that y is the label of."""
    policy, judge = labelled(flow, steps=8), critic(1, 1, members=2)
    policy.load_state_dict(pair_weights(flow))
    algo = small(
        learner, policy, judge, classifier_updates=100, critic_lr=1e-2, policy_lr=2e-3,
        ema_rate=0.05,
    )  # fmt: skip
    draws = torch.Generator().manual_seed(2)
    for _ in range(300):
        algo.update(pair(64, draws))
    told = algo.validate(pair(2000, draws), draws)
    assert told["val/accuracy"] > 0.98 and 0.4 < told["val/asked_base"] < 0.6
    assert told["val/asked"] > 0.85
    obs = torch.zeros(2000, 1)
    for label in (0, 1):
        algo.average.label = label
        side = (2 * label - 1) * algo.deploy(obs, draws).flatten()
        own = side[side > 0]
        assert len(own) > 0.85 * len(side)
        assert abs(float(own.mean()) - MEAN) < 0.12 and abs(float(own.std()) - SPREAD) < 0.08


@pytest.mark.learns
def test_the_classifier_learns_how_often_an_action_earns_a_label(learner, flow, critic):
    """Eight in ten at a = 0.5, three in ten at a = -0.5."""
    algo = small(learner, labelled(flow), critic(1, 1, members=2), classifier_updates=300,
                 critic_lr=1e-2)  # fmt: skip
    draws = torch.Generator().manual_seed(4)
    for _ in range(300):
        high = torch.rand(256, generator=draws) < 0.5
        label = torch.rand(256, generator=draws) < torch.where(high, 0.8, 0.3)
        action = torch.where(high, 0.5, -0.5).view(-1, 1, 1)
        algo.update(Labelled(torch.zeros(256, 1), action, label.long()))
    asked = algo.action_critic()
    found = asked(torch.zeros(1, 1), torch.tensor([0.5, -0.5]).view(1, 2, 1, 1))[0, 0].exp()
    assert found.tolist() == pytest.approx([0.8, 0.3], abs=0.05)


def test_first_the_classifier_learns_then_the_policy_and_the_clone_rests(learner, flow, critic):
    policy, judge = labelled(flow), critic(1, 1, members=2)
    algo = small(learner, policy, judge, classifier_updates=3, ema_rate=0.5)

    def weights(part: nn.Module) -> list[torch.Tensor]:
        return [p.detach().clone() for p in part.parameters()]

    def moved(part: nn.Module, before: list[torch.Tensor]) -> bool:
        return not all(map(torch.equal, part.parameters(), before))

    draws = torch.Generator().manual_seed(0)
    start, logits = weights(policy), weights(judge)
    for _ in range(3):
        assert "critic/accuracy" in algo.update(pair(32, draws))
    assert moved(judge, logits) and not moved(policy, start)
    logits = weights(judge)
    for _ in range(3):
        assert "policy/drift" in algo.update(pair(32, draws))
    assert moved(policy, start) and not moved(judge, logits)
    assert moved(algo.average, start) and not moved(algo.base, start)


def test_the_classifier_is_a_critic_that_steers_a_clone_that_never_learned(learner, flow):
    """Logits of the pair in closed form: 2 MEAN / SPREAD^2 a."""
    policy = labelled(flow, steps=10)
    policy.load_state_dict(pair_weights(flow))
    judge: Any = Logits(2 * MEAN / SPREAD**2)
    algo = small(learner, policy, judge)
    obs, draws = torch.zeros(500, 1), torch.Generator().manual_seed(0)
    action = torch.rand((3, 4, 1, 1), generator=draws)
    both = [Asked(judge, label)(obs[:3, None], action) for label in (0, 1)]
    assert both[0].shape == (1, 3, 4)
    torch.testing.assert_close(both[0].exp() + both[1].exp(), torch.ones(1, 3, 4))
    words = Settings(words=["svdd"], n=1, temperature=0.0, weight=1.0, particles=8, tilt=1.0,
                     rounds=0, rate=0.0)  # fmt: skip
    chain = Chain(algo.deployed(), algo.action_critic(), None, words)
    steered = chain(obs, draws).flatten()
    plain = algo.deploy(obs, draws).flatten()
    assert 0.4 < float((plain > 0).float().mean()) < 0.6
    assert float((steered > 0).float().mean()) > 0.95
    assert abs(float(steered[steered > 0].mean()) - MEAN) < 0.1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"members": 3}, "critic.members=3.*policy.labels=2"),
        ({"prediction": "eps", "path": "cosine"}, "policy.prediction=v"),
        ({"clip_x": True}, "policy.clip_x=false"),
    ],
)
def test_what_has_no_such_tilt_is_refused(learner, flow, critic, changes, told):
    changes = copy.copy(changes)
    judge = critic(1, 1, members=changes.pop("members", 2))
    with pytest.raises(ValueError, match=told):
        small(learner, labelled(flow, **changes), judge)


def test_numbers_of_labels_that_differ_are_refused(learner, flow, critic):
    algo = small(learner, labelled(flow), critic(1, 1, members=2))
    for source, told in ((object(), "source=labels"), (type("S", (), {"labels": 4}), "labels=4")):
        with pytest.raises(Exception, match=told):
            algo.read(source)
