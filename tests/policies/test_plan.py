"""Plans: what is known of them, what is asked of them, and where they begin."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.policies.drafting import Draft, DraftedPolicy
from rheo.policies.nets import MLP
from rheo.policies.normalize import Normalizer
from rheo.policies.plan import PlanPolicy

STATE, ACTION, T, SPREAD = 3, 2, 5, 0.3
SETTINGS: dict[str, Any] = {
    "path": "linear", "levels": None, "prediction": "v", "steps": 4, "clip_x": False,
    "clip_a": False,
}  # fmt: skip


class Aiming(nn.Module):
    """The exact velocity to N(m, SPREAD^2) on the linear path, m the first number of the feature.

    The feature is a sum over what is encoded: the observation, strengths and marks. Notes where it
    is asked.
    """

    horizon, action_dim = T, STATE + ACTION

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        self.weight = nn.Parameter(torch.linspace(0.1, 0.5, obs_dim, dtype=torch.float64))
        self.asked: list[tuple[float, torch.Tensor]] = []

    def encode(self, obs):
        return (obs * self.weight).sum(-1, keepdim=True)

    def embed(self, t):
        return t[..., None]

    def forward(self, x, emb, feat):
        self.asked.append((float(emb.reshape(-1)[0]), x.detach().clone()))
        t, mean = emb[..., None], feat[..., None]
        variance = t**2 * SPREAD**2 + (1 - t) ** 2
        ratio = (t * SPREAD**2 - (1 - t)) / variance
        return mean + ratio * (x - t * mean)


def norms(history: int = 1, fitted: bool = True) -> dict[str, Normalizer]:
    """Statistics of observations, with a history, and of actions."""
    obs = Normalizer(STATE * history, kind="gaussian" if fitted else "none", reach=10.0)
    action = Normalizer(ACTION, kind="minmax" if fitted else "none")
    if fitted:
        generator = torch.Generator().manual_seed(3)
        rows = torch.randn((50, STATE), generator=generator) * torch.tensor([1.0, 3.0, 0.2]) + 2
        obs.fit(rows.repeat(1, history))
        action.fit(torch.rand((50, ACTION), generator=generator) - 0.3)
    return {"obs_norm": obs.double(), "action_norm": action.double()}


def made(kind=PlanPolicy, want=(), guidance=1.0, history=1, fitted=True, **changes) -> Any:
    """A plan's policy over `Aiming`."""
    net = Aiming(STATE * history + 2 * len(want))
    kept = {**SETTINGS, **norms(history, fitted), "want": [*want], "guidance": guidance}
    return kind(net, **(kept | changes)).double()


def draws(rows=6, history=1):
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn((rows, STATE * history), generator=generator, dtype=torch.float64)
    noise = torch.randn((rows, T, STATE + ACTION), generator=generator, dtype=torch.float64)
    return obs, noise


@pytest.mark.parametrize("history", [1, 2])
def test_a_plan_begins_at_the_latest_observation_itself(history):
    policy, (obs, noise) = made(history=history), draws(history=history)
    obs[0] = 1e4  # far beyond what the network is shown
    plan = policy.plan(obs, noise)
    assert torch.equal(plan[:, 0, :STATE], obs[:, -STATE:])
    assert torch.equal(policy.act(obs, noise), plan[..., STATE:])
    assert policy.act(obs, noise).shape == (6, T, ACTION)
    several = noise[:, None].repeat(1, 3, 1, 1)
    assert torch.allclose(policy.plan(obs, several)[:, 2], plan, atol=1e-12)


def test_the_network_sees_the_first_state_where_the_flow_of_its_own_noise_is():
    policy, (obs, noise) = made(), draws()
    policy.plan(obs, noise)
    state = policy.obs_norm(obs)
    assert [t for t, _ in policy.net.net.asked] == pytest.approx([0, 0.25, 0.5, 0.75])
    for t, x in policy.net.net.asked:
        assert torch.allclose(x[:, 0, :STATE], t * state + (1 - t) * noise[:, 0, :STATE])


def test_all_but_the_first_state_is_the_flow_without_it():
    """Entries of `Aiming` do not meet, so what is put in changes nothing else: Euler by hand."""
    policy, (obs, noise) = made(), draws()
    mean = policy.net.net.encode(policy.obs_norm(obs))[..., None]
    x = noise
    for k in range(4):
        t = k / 4
        ratio = (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2)
        x = x + (mean + ratio * (x - t * mean)) / 4
    plan = policy.plan(obs, noise, clip=False)
    wanted = torch.cat(
        [
            policy.obs_norm.inverse(x[..., :STATE]),
            policy.action_norm.inverse(x[..., STATE:]),
        ],
        -1,
    )
    assert torch.allclose(plan[:, 1:], wanted[:, 1:])
    assert torch.allclose(plan[:, 0, STATE:], wanted[:, 0, STATE:])
    assert policy.act(obs, 50 * noise).abs().max() == 1


def test_a_plans_units_are_those_of_states_and_of_actions():
    policy = made(history=2)
    plan = torch.randn(4, T, STATE + ACTION, dtype=torch.float64).clamp(-1, 1)
    point = policy.to_latent(plan)
    assert torch.allclose(policy.to_plan(point), plan)
    assert torch.allclose(point[..., STATE:], policy.action_norm(plan[..., STATE:]))
    twice = policy.obs_norm.scaled(plan[..., :STATE].repeat(1, 1, 2))
    assert torch.allclose(point[..., :STATE], twice[..., STATE:])


def test_what_is_clipped_in_a_plan_are_its_actions():
    policy = made(clip_x=True)
    x = torch.full((1, T, STATE + ACTION), 3.0, dtype=torch.float64)
    assert torch.equal(policy._bounded(x)[..., :STATE], x[..., :STATE])
    assert (policy._bounded(x)[..., STATE:] == 1).all()


# ---- what is asked --------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.5])
def test_guidance_goes_on_from_plans_of_which_nothing_is_asked(guidance):
    """Between normals of one variance it is the normal with the mean between theirs, or beyond."""
    want, (obs, noise) = (0.7, None), draws()
    policy, net = made(want=want, guidance=guidance), Aiming(STATE + 4)
    told = torch.tensor([0.7, 0.0, 1.0, 0.0], dtype=torch.float64)
    shift = float((told * net.weight[STATE:].detach()).sum())
    plain = made()
    plain.net.net.weight.data = net.weight.data[:STATE]
    encode = plain.net.net.encode
    plain.net.net.encode = lambda seen: encode(seen) + guidance * shift
    assert torch.allclose(policy.plan(obs, noise), plain.plan(obs, noise))


def test_a_label_of_which_nothing_is_asked_is_not_told():
    net, obs = Aiming(STATE + 4), draws()[0]
    policy = made(want=(None, None), guidance=1.0)
    strength = torch.rand(6, 2, dtype=torch.float64)
    nothing = policy.told(obs, strength, torch.zeros_like(strength))
    assert torch.equal(policy.features(obs), nothing.repeat(1, 2))
    every = policy.told(obs, strength, torch.ones_like(strength))
    seen = torch.cat([policy.obs_norm(obs), strength, torch.ones_like(strength)], -1)
    assert torch.allclose(every, net.encode(seen))


# ---- where a plan begins --------------------------------------------------------------------


def drafted(begin, **changes):
    return made(DraftedPolicy, want=(0.7,), begin=begin, draft_width=8, **changes)


def wanted(policy, obs):
    """The draft that a deployed policy makes."""
    strength = policy.net.want.expand(len(obs), 1)
    return policy.drafted(obs, strength, torch.ones_like(strength))


def test_a_plan_that_begins_at_its_end_is_the_draft_bit_for_bit():
    policy, (obs, noise) = drafted(1.0), draws()
    plan, draft = policy.plan(obs, noise), policy.to_plan(wanted(policy, obs))
    assert torch.equal(plan[:, 0, :STATE], obs)
    assert torch.equal(plan[:, 1:], draft[:, 1:])
    assert torch.equal(plan[:, 0, STATE:], draft[:, 0, STATE:])
    assert not policy.net.net.asked


def test_a_plan_that_begins_at_noise_does_not_know_its_draft():
    policy, (obs, noise) = drafted(0.0), draws()
    plain = made(want=(0.7,))
    for parameter in policy.draft.parameters():
        parameter.data.fill_(torch.nan)
    assert torch.equal(policy.plan(obs, noise), plain.plan(obs, noise))


@pytest.mark.parametrize(
    ("begin", "grid", "times"),
    [
        (0.3, "uniform", [0.3, 0.5, 0.75]),
        (0.5, "uniform", [0.5, 0.75]),
        (0.5, "late", [0.5, 0.75, 0.9375]),
        (0.96, "uniform", [0.96]),
    ],
)
def test_a_plan_begins_on_the_way_from_noise_to_its_draft(begin, grid, times):
    policy, (obs, noise) = drafted(begin, grid=grid), draws()
    policy.plan(obs, noise)
    asked = policy.net.net.asked
    assert [t for t, _ in asked] == pytest.approx(times)
    x = begin * wanted(policy, obs) + (1 - begin) * noise
    assert torch.allclose(asked[0][1], x)


def test_a_table_of_noise_levels_is_refused_where_plans_begin_between_them():
    with pytest.raises(ValueError, match="policy.path=betas.*set policy.path=linear"):
        drafted(0.5, path="betas", levels=20)


def test_a_drafts_cell_is_torchs_gated_unit_and_its_states_go_on_by_what_it_foretells():
    draft = Draft(4, STATE, ACTION, T, 8)
    cell = nn.GRUCell(STATE, 8)
    for mine, theirs in ((draft.inlet, "ih"), (draft.memory, "hh")):
        getattr(cell, f"weight_{theirs}").data = mine.weight.data
        getattr(cell, f"bias_{theirs}").data = mine.bias.data
    seen, state = torch.randn(6, 4), torch.randn(6, STATE)
    plan, h = draft(seen, state), draft.begin(seen).tanh()
    for k in range(T):
        h = cell(state, h)
        action, change = draft.outlet(h).split([ACTION, STATE], -1)
        assert torch.allclose(plan[:, k], torch.cat([state, action], -1), atol=1e-6)
        state = state + change


def test_the_network_of_a_plan_has_the_sizes_of_plans():
    shape = {"obs_dim": 6, "action_dim": 2, "horizon": T, "obs_steps": 2, "images": {}}
    sizes = PlanPolicy.inner_sizes({"want": [0.5, None]}, shape)
    assert (sizes["obs_dim"], sizes["action_dim"], sizes["horizon"]) == (10, 5, T)
    net = MLP(10, 5, T, width=8, depth=1, encoder_depth=1, activation="relu")
    kept = {**SETTINGS, "obs_norm": Normalizer(6, kind="none")}
    kept |= {"action_norm": Normalizer(2, kind="none"), "want": [0.5, None], "guidance": 2.0}
    policy = PlanPolicy(net, **kept)
    noise = policy.start(7, torch.Generator().manual_seed(0))
    assert noise.shape == (7, T, 5) and policy.act(torch.randn(7, 6), noise).shape == (7, T, 2)
