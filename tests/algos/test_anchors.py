"""What holds a policy: its distances, its coefficients, and what becomes of the policy."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos import anchors, losses
from rheo.algos.anchors import Anchor, Anchors, Pull, Shown, diversity, held, most, varied
from rheo.algos.awm_q import AWMQ
from rheo.algos.onpolicy import Rows
from rheo.envs.batch import Batch
from rheo.policies.steer import Settings

CPU = torch.device("cpu")
GATE = {"kind": "velocity", "rule": "gated", "coef": 1.0, "share": 0.1}
DUAL = {"kind": "velocity", "rule": "dual", "coef": 1.0, "threshold": 0.04, "rate": 0.5}
KNOWN = {"velocity": ("const", "scaled", "dual", "gated"), "data": ("const", "dual")}


def moved(policy, size, seed=0):
    """Adds normal noise to all parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def awm_q(flow, critic, settings, action_dim=1, **changes) -> Any:
    torch.manual_seed(0)
    values = settings("awm_q", **changes)
    words = {key: value for key, value in values.pop("steer").items() if key != "_target_"}
    generator = torch.Generator().manual_seed(0)
    return AWMQ(flow(2, action_dim), critic(2, action_dim), generator, Settings(**words), **values)


# ---- gates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(0.1, 6), (0.02, 1), (0.2, 13), (0.0, 0), (1.0, 64)])
def test_as_many_samples_are_gated_as_asked_the_most_doubtful_ones(generator, share, count):
    for doubt in (torch.rand((8, 8), generator=generator), torch.ones(8, 8)):  # ties too
        chosen = most(doubt, torch.tensor(share))
        assert chosen.sum() == count and chosen.shape == doubt.shape
        if 0 < count < 64:
            assert doubt[chosen].min() >= doubt[~chosen].max()


def test_only_gated_samples_are_pulled_and_all_are_measured(flow):
    policy, base = flow(2, 1), flow(2, 1)
    moved(policy, 0.3)
    obs, t = torch.randn(6, 2), torch.rand(6, 3)
    noise = torch.randn(6, 3, 1, 1)
    met = losses.pairs(policy, obs, torch.rand(6, 1, 1), noise, t)
    velocity = met.velocity.detach().requires_grad_()
    rows = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    pulls = [Pull("drift", 2.0, base, rows)]
    loss, metrics = held(met._replace(velocity=velocity), obs, t, pulls)
    (slope,) = torch.autograd.grad(loss, velocity)
    assert torch.equal(slope.flatten(1).any(1), rows.bool())
    gap = (met.velocity - base.velocity(met.x, t, base.features(obs))).square().mean((-1, -2))
    assert metrics["policy/drift"].item() == pytest.approx(gap.mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx(2 * gap[rows.bool()].sum().item() / 18, rel=1e-5)


def test_the_share_of_a_gate_grows_where_doubt_does_and_falls_where_it_falls():
    part = Anchor(GATE, CPU)
    seen = []
    for doubt in (1.0, 1.1, 1.2, 1.15, 0.9):  # first, above all, above all, between, below all
        part.watch(torch.full((4,), doubt))
        seen.append(part.state["share"].item())
    assert seen == pytest.approx([0.1, 0.11, 0.121, 0.121, 0.1089])
    for bound, change in ((0.2, 1.0), (0.02, -1.0)):
        for step in range(40):
            part.watch(torch.full((4,), 5.0 + change * (1 + step)))
        assert part.state["share"].item() == pytest.approx(bound)


def test_what_was_seen_long_ago_is_forgotten():
    part = Anchor(GATE, CPU)
    for doubt in (9.0, *[1.0] * anchors.RECENT, 2.0):
        part.watch(torch.tensor([doubt]))
    # down once, at the first 1 after the 9; up once, when the 9 is forgotten
    assert part.state["share"].item() == pytest.approx(0.1 * 0.9 * 1.1)


@pytest.mark.parametrize("members", [[[0.0, 1.0], [0.0, 3.0]], [[5.0, 0.0], [0.0, 0.0]]])
def test_the_samples_that_critics_disagree_on_are_held(flow, critic, settings, members):
    algo = awm_q(flow, critic, settings, pulls=[{**GATE, "share": 0.2}])
    q = torch.tensor(members)[:, None].expand(2, 4, 2)  # 4 states: 2 of 8 samples
    assert algo.among(q, None).sum() == 2
    wide = q.std(0, correction=0) > 0.5
    assert not (algo.among(q, None).bool() & ~wide).any()


# ---- the other rules -----------------------------------------------------------------------------


def test_a_scaled_anchor_holds_the_best_most_and_the_worst_not_at_all():
    part = Anchor({"kind": "velocity", "rule": "scaled", "coef": 1.0}, CPU)
    advantage = torch.tensor([-1.0, 0.0, 0.5, 1.0])
    rows = part.rows(advantage, None)
    assert rows is not None and rows.tolist() == [0.0, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("threshold", "expected"), [(0.04, 4.0), (0.25, 1.0)])
def test_a_dual_coefficient_rests_where_the_distance_meets_its_threshold(threshold, expected):
    """min_x (x - 1)^2 + c x^2 is at 1 / (1 + c): the distance x^2 is tau at c = tau^-1/2 - 1."""
    part = Anchor({**DUAL, "threshold": threshold}, CPU)
    for _ in range(2000):
        part.learn((1 / (1 + part.coef)).square())
    assert part.coef.item() == pytest.approx(expected, rel=1e-3)


def test_a_dual_coefficient_stays_in_its_bounds_and_moves_a_unit_at_most():
    part = Anchor(DUAL, CPU)
    part.learn(torch.tensor(1e9))
    assert part.coef.item() == pytest.approx(1.5)
    for _ in range(10_000):
        part.learn(torch.zeros(()))
    assert part.coef.item() == pytest.approx(1e-3)


# ---- renewal -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"limit": 0.01}, {"every": 3}])
def test_a_renewed_start_leaves_the_policy_alone_and_the_pull_at_zero(flow, changes):
    policy, base = flow(2, 1), flow(2, 1)
    base.load_state_dict(policy.state_dict())
    moved(policy, 0.2)
    part = Anchor({"kind": "velocity", "coef": 1.0, **changes}, CPU)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    start = [value.clone() for value in base.parameters()]
    seen = []
    for distance in (0.005, 0.01, 0.02):
        assert all(map(torch.equal, base.parameters(), start))
        seen.append(part.renew(torch.tensor(distance), base, policy).item())
    assert seen == [0, 0, 1] and part.state["age"] == 0
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    obs, t = torch.randn(5, 2), torch.rand(5, 2)
    met = losses.pairs(policy, obs, torch.rand(5, 1, 1), torch.randn(5, 2, 1, 1), t)
    loss, _ = held(met, obs, t, [Pull("drift", 1.0, base)])
    assert loss.item() == 0
    assert part.renew(torch.tensor(0.001), base, policy).item() == 0


def test_a_run_renews_its_start_after_so_many_steps(flow, critic, settings):
    algo = awm_q(flow, critic, settings, pulls=[{**GATE, "every": 2}])
    moved(algo.policy, 0.1)
    seen = [algo.update_policy(torch.randn(8, 2))["policy/renewed"].item() for _ in range(4)]
    assert seen == [0, 1, 0, 1]
    assert all(map(torch.equal, algo.base.parameters(), algo.policy.parameters()))


# ---- diversity -----------------------------------------------------------------------------------


def test_diversity_is_the_distance_to_the_nearest_of_the_group_over_its_mean(generator):
    action = torch.tensor([0.0, 1.0, 3.0])[None, :, None, None].expand(1, 3, 2, 1)
    torch.testing.assert_close(diversity(action), torch.tensor([[0.75, 0.75, 1.5]]))
    drawn = torch.rand((5, 6, 3, 2), generator=generator)
    torch.testing.assert_close(diversity(drawn).mean(1), torch.ones(5))
    drawn[:, 4] = drawn[:, 1]
    twice = diversity(drawn)
    assert not twice[:, [1, 4]].any() and (twice[:, [0, 2, 3, 5]] > 0).all()
    torch.testing.assert_close(twice.mean(1), torch.ones(5))
    assert not diversity(drawn[:, :1].expand(5, 6, 3, 2)).any()


def test_diversity_multiplies_what_is_good_alone(flow, critic, settings):
    action = torch.tensor([0.0, 1.0, 3.0])[None, :, None, None]
    advantage = torch.tensor([[-1.0, 0.4, 0.6]])
    torch.testing.assert_close(varied(advantage, action), torch.tensor([[-1.0, 0.3, 0.9]]))
    plain, spread = (
        awm_q(flow, critic, settings, diversity=on).meet(torch.ones(4, 2))[0]
        for on in (False, True)
    )
    expected = varied(plain.advantage[..., 0], plain.action)
    torch.testing.assert_close(spread.advantage[..., 0], expected)


# ---- chains --------------------------------------------------------------------------------------


def decisions(algo, rows=4096):
    """Decisions of an algorithm on policy, with advantages of no meaning."""
    obs = torch.randn((rows, 2), generator=algo.generator)
    choice = algo.act(obs)
    return Rows(obs, choice.action, choice.kept, torch.zeros(rows), torch.zeros(rows))


@pytest.mark.parametrize("executed", [None, 1])
def test_the_divergence_of_noisy_flows_is_the_mean_log_ratio_of_their_chains(
    flow, learner, executed
):
    """E[log p - log p_base] over chains of the policy, summed over what is executed, in nats."""
    torch.manual_seed(0)
    pulls = [{"kind": "path", "coef": 1.0}]
    policy = flow(2, 1, 2, steps=3)
    algo = learner("reinflow", 2, 1, policy=policy, executed=executed, pulls=pulls)
    rows = decisions(algo)
    assert algo.path(rows.kept["x"], rows.obs).item() == 0
    moved(algo.base, 0.1)
    given = rows.kept["x"], rows.obs, algo.noise
    own, _ = algo.policy.chain_logp(*given, executed=executed)
    base, _ = algo.base.chain_logp(*given, executed=executed)
    ratio = (own - base).sum((-1, -2, -3)).detach()
    noise = 4 * ratio.std().item() / math.sqrt(len(ratio))
    found = algo.path(rows.kept["x"], rows.obs).item()
    assert found == pytest.approx(ratio.mean().item(), abs=noise) and noise < found / 4
    loss, metrics = algo.policy_loss(rows, torch.zeros(1), *algo.draw(rows))
    assert metrics["policy/path_kl"].item() == pytest.approx(found, rel=1e-5)
    pulls[0]["coef"] = 3.0
    algo.anchoring = Anchors(pulls, algo.holds, CPU)
    again, _ = algo.policy_loss(rows, torch.zeros(1), *algo.draw(rows))
    assert again.item() - loss.item() == pytest.approx(2 * found, rel=1e-4)


def test_the_divergence_of_denoising_steps_is_their_mean_log_ratio(diffusion, learner):
    torch.manual_seed(0)
    policy = diffusion(2, 1, steps=5)
    nn.init.normal_(policy.net.outlet.weight, std=0.1)
    pulls = [{"kind": "path", "coef": 1.0}]
    algo = learner("dppo", 2, 1, policy=policy, tuned_steps=4, pulls=pulls)
    rows = decisions(algo, 8192)
    which = torch.arange(len(rows.obs)) % 4
    given = rows.kept["x"], rows.obs, which
    assert algo.path(*given).item() == 0
    moved(algo.origin, 0.05)
    own = algo.log_prob(*given)
    algo.policy, policy = algo.origin, algo.policy
    base = algo.log_prob(*given)
    algo.policy = policy
    ratio = 4 * (own - base).detach()  # of one element: its mean is its sum
    noise = 4 * ratio.std().item() / math.sqrt(len(ratio))
    found = algo.path(*given).item()
    assert found == pytest.approx(ratio.mean().item(), abs=noise) and noise < found / 4


def test_noise_does_not_grow_to_come_closer(flow, learner):
    policy = flow(2, 1, steps=3)
    algo = learner("reinflow", 2, 1, policy=policy, pulls=[{"kind": "path", "coef": 1.0}])
    moved(algo.base, 0.1)
    rows = decisions(algo, 16)
    algo.path(rows.kept["x"], rows.obs).backward()
    assert all(part.grad is None for part in algo.noise.parameters())
    assert any(part.grad is not None and part.grad.any() for part in policy.parameters())


# ---- recorded actions ----------------------------------------------------------------------------


def data_rows(advantage, own, recorded):
    """Decisions at one state with recorded actions beside them, all met at the same pairs."""
    rows = len(own)
    obs, t = torch.zeros(rows, 2), torch.full((rows, 1), 0.3)
    noise = torch.full((rows, 1, 1, 1), 0.5)
    kept = {"t": t, "noise": noise, "data_obs": obs, "data_action": recorded[:, None, None]}
    return Rows(obs, own[:, None, None], kept, advantage, torch.zeros(rows))


def test_the_gradient_is_zero_where_data_tilted_by_rewards_meets_the_policy(flow, learner):
    """A = -e^(-(r - Z) / beta) and the cloning of pi_D balance at pi = pi_D e^((r - Z) / beta).

    DDRL's optimum (arXiv:2512.04332), on three actions: pi_D (4, 2, 2) / 8 and pi (2, 2, 4) / 8.
    """
    torch.manual_seed(0)
    policy = flow(2, 1)
    nn.init.normal_(policy.net.outlet.weight, std=0.3)
    algo = learner(
        *("awm_gae", 2, 1), policy=policy, pulls=[{"kind": "data", "coef": 1.0}], pairs=1,
        penalty="clip", weighting="uniform", advantage_clip=5.0, advantage_max=5.0,
    )  # fmt: skip
    actions = torch.tensor([-0.6, 0.1, 0.8])
    data, tilt = torch.tensor([4, 2, 2]), torch.tensor([2, 2, 4])

    def slope(counts):
        own = actions.repeat_interleave(counts)
        advantage = -(data / tilt).repeat_interleave(counts)  # e^(-(r - Z) / beta)
        rows = data_rows(advantage, own, actions.repeat_interleave(data))
        met = losses.pairs(policy, rows.obs, rows.action, rows.kept["noise"], rows.kept["t"])
        rows.kept["old"] = algo.surrogates(met, rows.kept["t"]).detach()
        draws = rows.kept["noise"][:, 0], rows.kept["t"][:, 0]
        loss, _ = algo.policy_loss(rows, torch.zeros(8, dtype=torch.int64), *draws)
        parts = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
        return max(float(part.abs().max()) for part in parts if part is not None)

    assert slope(tilt) < 1e-6
    assert slope(torch.tensor([3, 2, 3])) > 1e-2
    assert slope(data) > 1e-2


def test_recorded_rows_alone_are_cloned(flow):
    policy = flow(2, 1)
    moved(policy, 0.2)
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(6, 2), torch.rand(6, 1, 1)
    counts = torch.tensor([True, False, True, False, False, True])
    shown = Shown.drawn(policy, obs, action, generator, counts)
    plain = policy.match(obs, action, shown.noise, shown.t)
    assert shown.error(policy).item() == pytest.approx(plain[counts].mean().item(), rel=1e-5)
    none = shown._replace(counts=torch.zeros(6, dtype=torch.bool))
    assert none.error(policy).item() == 0


class Slope(nn.Module):
    """Q(s, a) = a: what pulls alone keep from the edge of the box."""

    def forward(self, obs, action):
        return action.sum((-1, -2))[None].repeat(2, *[1] * (action.ndim - 2))


@pytest.mark.learns
def test_recorded_actions_keep_a_policy_from_the_edge(flow, critic, settings):
    """The best action is 1, the recorded ones are 0: with a pull the policy stays between."""
    means = []
    for pulls in ([], [{"kind": "data", "coef": 2.0}]):
        algo = awm_q(flow, critic, settings, policy_lr=2e-3, particles=8, pairs=2, pulls=pulls)
        algo.target = Slope()
        rows = torch.zeros(64)
        for _ in range(90):
            obs = torch.randn((64, 2), generator=algo.generator)
            batch = Batch(obs, torch.zeros(64, 1, 1), rows, rows, obs)
            algo.update_policy(obs, algo.shown(algo.policy, batch, 64, algo.generator))
        means.append(algo.deploy(torch.zeros(500, 2), algo.generator).mean().item())
    assert means[0] > 0.6 and means[1] < means[0] - 0.3


# ---- entries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([{"coef": 1.0}], r"algo\.pulls\[0\]\.kind: missing; this algorithm has velocity, data"),
        ([{"kind": "path", "coef": 1.0}], "kind=path: not here; this algorithm has velocity"),
        ([{"kind": "data", "coef": 1.0, "rule": "gated"}], "rule=gated: of kind data there are"),
        ([{"kind": "velocity"}], r"algo\.pulls\[0\]\.coef: missing; kind velocity"),
        ([{**GATE, "share": 0.5}], "share=0.5: must be at least 0.02 and at most 0.2"),
        ([{**GATE, "every": 2.5}], "every=2.5: must be a whole number"),
        ([{**GATE, "coef": 0}], "coef=0: must be above 0"),
        ([{**GATE, "coef": True}], "coef=True: must be a finite number"),
        ([{**GATE, "coef": math.inf}], "coef=inf: must be a finite number"),
        ([{**GATE, "limits": 1.0}], r"limits: kind velocity with rule gated takes .*'limit'"),
        ([{**GATE, "threshold": 1.0}], "threshold: kind velocity with rule gated takes"),
        ([{"kind": "data", "coef": 1.0, "every": 2}], "every: kind data with rule const takes"),
        ([GATE, DUAL], r"algo\.pulls\[1\]\.kind=velocity: is there twice"),
    ],
)
def test_entries_that_mean_nothing_are_refused_by_their_place(entries, told):
    with pytest.raises(ValueError, match=told):
        Anchors(entries, KNOWN, CPU)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"anchor_coef": 0.5, "pulls": [GATE]}, "algo.anchor_coef=0.5 with an entry of kind"),
        ({"trust_coef": 0.0, "pulls": [GATE]}, "below algo.advantage_max"),  # may hold nothing
        ({"relative": True, "pulls": [{**GATE, "every": 5}]}, "algo.relative=true with an entry"),
    ],
)
def test_entries_that_contradict_other_keys_are_refused(flow, critic, settings, changes, told):
    with pytest.raises(ValueError, match=told):
        awm_q(flow, critic, settings, **changes)


def test_a_constant_pull_of_an_entry_is_that_of_the_key(flow, critic, settings):
    """And it counts as one against repulsion."""
    keyed = awm_q(flow, critic, settings, trust_coef=0.0, anchor_coef=1.0)
    pulls = [{"kind": "velocity", "coef": 1.0}]
    entered = awm_q(flow, critic, settings, trust_coef=0.0, pulls=pulls)
    for algo in (keyed, entered):
        moved(algo.policy, 0.1)
        for _ in range(3):
            assert algo.update_policy(torch.ones(8, 2))["policy/drift"] > 0
    assert all(map(torch.equal, keyed.policy.parameters(), entered.policy.parameters()))


def test_what_coefficients_have_come_to_is_saved_and_carried():
    once = {**DUAL, "every": 5}
    one, two, three = (Anchors([once, {"kind": "data", "coef": 2.0}], {
        "velocity": ("dual",), "data": ("const",)}, CPU) for _ in range(3))  # fmt: skip
    one.parts["velocity"].learn(torch.ones(()))
    one.parts["velocity"].state["age"].add_(4)
    two.load_state_dict(one.state_dict())
    three.carry(one.state_dict())
    for other, age in ((two, 4), (three, 0)):
        assert other.parts["velocity"].coef == one.parts["velocity"].coef > 1
        assert other.parts["velocity"].state["age"] == age
    gated = Anchors([{**GATE, "share": 0.15}], KNOWN, CPU)
    gated.carry(one.state_dict())
    assert gated.parts["velocity"].state["share"].item() == pytest.approx(0.15)
    assert gated.parts["velocity"].coef == 1


# ---- mirror descent ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v", "eps", "a"])
def test_predictions_are_compared_in_the_form_that_is_learned(flow, form):
    """For a form p: (p - p') = (match error's root) differences at the very same points."""
    torch.manual_seed(0)
    policy, base = (flow(2, 3, 2, path="cosine", prediction=form) for _ in range(2))
    moved(policy, 0.1, 1)
    moved(base, 0.1, 2)
    obs, action, noise = torch.randn(5, 2), torch.rand(5, 4, 2, 3), torch.randn(5, 4, 2, 3)
    t = 0.1 + 0.8 * torch.rand(5, 4)
    found = anchors.unlike(policy, base, obs, action, noise, t)
    c = policy.path.coefficients(t).over_chunk()
    target = {"v": c.da * action + c.db * noise, "eps": noise, "a": action}[form]
    x = c.a * action + c.b * noise
    own, theirs = (
        each.net(x, each._embed(t), each.features(obs[:, None]).expand(5, 4, -1))
        for each in (policy, base)
    )
    torch.testing.assert_close(found, (own - theirs).square(), atol=1e-5, rtol=1e-4)
    given = obs[:, None], action, noise, t
    error = policy.match_errors(*given, space=form)
    torch.testing.assert_close((own - target).square(), error, atol=1e-5, rtol=1e-4)
    assert found.min() >= 0 and found.mean() > 1e-3


def mirror(flow, learner, pulls):
    torch.manual_seed(0)
    policy = flow(2, 1, steps=3)
    algo = learner("qvpo", 2, 1, policy=policy, critic=None, particles=8, kept=4, pulls=pulls)
    algo.critic.forward = Slope().forward  # the best action is the edge of the box
    return algo


@pytest.mark.learns
def test_mirror_descent_is_held_to_its_start_and_to_data(flow, learner):
    """Runs uphill: a dual pull stays at its threshold, a stronger one below, data's at the data."""
    dual = {"kind": "velocity", "rule": "dual", "coef": 1.0, "threshold": 0.02, "rate": 2.0}
    cases = (dual, {"kind": "velocity", "coef": 3.0}, {"kind": "data", "coef": 3.0})
    means, drifts = [], []
    for pulls in cases:
        algo = mirror(flow, learner, [pulls])
        algo.policy_opt.param_groups[0]["lr"] = 1e-3
        rows, seen = torch.zeros(64), []
        for _ in range(200):
            obs = torch.randn((64, 2), generator=algo.generator)
            batch = Batch(obs, torch.zeros(64, 1, 1), rows, rows, obs)
            metrics = algo.update_policy(obs, algo.shown(algo.policy, batch, 64, algo.generator))
            seen.append(float(metrics.get("policy/drift", torch.zeros(()))))
        noise = algo.policy.noise(500, algo.generator)
        means.append(algo.policy.act(torch.zeros(500, 2), noise).mean().item())
        drifts.append(sum(seen[-50:]) / 50)
    assert drifts[0] == pytest.approx(0.02, rel=0.1) and 0 < drifts[1] < 0.015
    assert means[0] > means[1] > 0.03 and abs(means[2]) < 0.05
