"""Classifier-free guidance between two normals of one variance, which is a third one."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.policies import steer
from rheo.policies.guidance import BAD, GOOD, UNTOLD, GuidedPolicy
from rheo.policies.nets import MLP

MEAN, SHIFT, SPREAD = 0.1, torch.tensor([[0.15], [-0.3]], dtype=torch.float64), 0.2
FORMS = [("linear", "v"), ("cosine", "eps"), ("betas", "a")]


class Aiming(nn.Module):
    """The field of N(feat, SPREAD^2) by that of a normal of mean 0, which is moved."""

    horizon = action_dim = 1

    def __init__(self, field):
        super().__init__()
        self.field = field

    def encode(self, obs):
        return obs

    def embed(self, t):
        return self.field.embed(t)

    def forward(self, x, emb, feat):
        c = self.field.path.coefficients(emb[..., 0]).over_chunk()
        mean = feat[..., None]
        moved = {"v": c.da * mean, "eps": 0 * mean, "a": mean}[self.field.prediction]
        return self.field(x - c.a * mean, emb, feat) + moved


@pytest.fixture
def guided(gaussian_policy):
    """A guided policy whose observation is its untold mean, and the plain one of any mean."""

    def make(path, prediction, guidance):
        def plain(mean):
            return gaussian_policy(path, prediction, mu=mean, spread=SPREAD, steps=6)

        like = plain(0.0)
        kept: dict[str, Any] = {"path": path, "levels": 50 if path == "betas" else None, "steps": 6}
        kept |= {"prediction": prediction, "sampler": "euler", "eta": 0.0, "squash": "clip"}
        kept |= {"clip_x": False, "clip_a": False}
        kept |= {"obs_norm": like.obs_norm, "action_norm": like.action_norm}
        policy = GuidedPolicy(Aiming(like.net), guidance=guidance, **kept)
        policy.net.flags = nn.Parameter(SHIFT.clone())
        return policy, plain

    return make


def noises(*lead):
    return torch.randn((*lead, 1, 1), generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(("path", "prediction"), FORMS)
@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.5])
def test_guidance_goes_on_from_the_untold_mean_through_the_good_one(
    guided, path, prediction, guidance
):
    policy, plain = guided(path, prediction, guidance)
    obs, noise = torch.full((50, 1), MEAN, dtype=torch.float64), noises(50)
    aim = plain(MEAN + guidance * float(SHIFT[GOOD]))
    close: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(policy.act(obs, noise), aim.act(obs, noise), **close)
    t = torch.linspace(0.02, 0.98, 50, dtype=torch.float64)
    fields = [p.velocity(noise, t, p.features(obs)) for p in (policy, aim)]
    torch.testing.assert_close(*fields, **close)
    chains = [p.rollout(obs, noise, 0.1, torch.Generator().manual_seed(3)) for p in (policy, aim)]
    torch.testing.assert_close(chains[0].x, chains[1].x, **close)
    torch.testing.assert_close(chains[0].logp, chains[1].logp, **close)


@pytest.mark.parametrize(("path", "prediction"), FORMS)
def test_a_flag_is_matched_by_the_network_alone_however_far_it_is_guided(guided, path, prediction):
    policy, plain = guided(path, prediction, 2.5)
    obs, noise = torch.full((6, 1), MEAN, dtype=torch.float64), noises(6)
    action, t = 0.4 * noises(6), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    flag = torch.tensor([GOOD, BAD, UNTOLD] * 2)
    found = policy.match_told(obs, action, noise, t, flag)
    for row, each in enumerate(flag.tolist()):
        aim = plain(MEAN + (0.0 if each == UNTOLD else float(SHIFT[each])))
        rows = slice(row, row + 1)
        expected = aim.match(obs[rows], action[rows], noise[rows], t[rows], space=prediction)
        torch.testing.assert_close(found[rows], expected, rtol=1e-9, atol=1e-9)


def test_words_of_a_noisy_chain_steer_the_guided_field(guided):
    """With a critic that likes all actions alike they are the samples of that field's chain."""
    policy, plain = guided("linear", "v", 2.5)
    assert steer.stochastic(policy)
    obs, noise = torch.full((50, 1), MEAN, dtype=torch.float64), noises(50)
    aim = plain(MEAN + 2.5 * float(SHIFT[GOOD]))
    found, expected = (
        steer.value_guided(
            p, lambda obs, a: 0 * a.sum((-2, -1))[None], obs, noise,
            torch.Generator().manual_seed(1), 4, 1.0,
        )
        for p in (policy, aim)
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_fresh_flag_says_nothing(flow_and_guided):
    flow, policy = flow_and_guided
    obs, noise = torch.randn(4, 3), torch.randn(4, 2, 2)
    torch.testing.assert_close(policy.act(obs, noise), flow.act(obs, noise))


@pytest.fixture
def flow_and_guided(policy_of):
    """A flow and a guided policy over the same small network."""
    torch.manual_seed(0)
    net = MLP(3, 2, 2, width=8, depth=1, encoder_depth=1, activation="relu")
    nn.init.normal_(net.outlet.weight)
    flow = policy_of(net)
    kept: dict[str, Any] = {
        "path": "linear",
        "levels": None,
        "prediction": "v",
        "steps": 4,
        "sampler": "euler",
    }
    kept |= {"eta": 0.0, "clip_x": False, "clip_a": False, "squash": "clip"}
    norms = {"obs_norm": flow.obs_norm, "action_norm": flow.action_norm}
    return flow, GuidedPolicy(net, guidance=3.0, **kept, **norms)
