"""Plans of which only the first steps are executed: what learns counts those alone."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.algos.dsrl import DSRL
from rheo.algos.expo import EXPO
from rheo.algos.rfm import RFM
from rheo.algos.sac import SAC
from rheo.envs.batch import Batch, Rollout
from rheo.policies.coded import NoiseMap, coded_gaussian
from rheo.policies.critics import QEnsemble
from rheo.policies.editor import Editor
from rheo.policies.heads import Gaussian, TanhGaussian
from rheo.scripts.assemble import Sizes, make_algo
from rheo.scripts.config.compose import compose

SMALL: dict[str, Any] = {
    "width": 32, "depth": 1, "activation": "relu", "log_std_min": -5.0, "log_std_max": 2.0,
}  # fmt: skip


def seeded():
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


class Hill(QEnsemble):
    """Q = -c sum (a - 0.1)^2 over the executed steps: it knows of no others."""

    def __init__(self, executed, curvature=8.0):
        nn.Module.__init__(self)
        self.executed, self.curvature = executed, nn.Parameter(torch.tensor(curvature))

    def forward(self, obs, action):
        value = -self.curvature * (action[..., : self.executed, :] - 0.1).square().sum((-2, -1))
        return torch.stack([value, value])


class Shift(nn.Module):
    """A base that acts 0.1 + 0.3 noise."""

    def act(self, obs, noise):
        return 0.1 + 0.3 * noise


def sac(settings, horizon, executed):
    """How the actor explores after it and its temperature have settled."""
    policy = TanhGaussian(1, 1, horizon, **SMALL)
    values = settings("sac", entropy_per_dim=-1.0, policy_lr=1e-2, alpha_lr=3e-2)
    algo = SAC(policy, Hill(executed), seeded(), executed, **values)
    obs = torch.zeros(128, 1)
    for _ in range(200):
        algo.update_policy(obs)
    return algo.act(torch.zeros(4000, 1))


def expo(settings, horizon, executed, flow):
    """How the editor moves a base at rest."""
    values = settings("expo", base_lr=0.0, policy_lr=1e-2, alpha_lr=3e-2)
    del values["editor"]
    editor = Editor(1, 1, horizon, scale=0.2, **SMALL)
    algo = EXPO(flow(1, 1, horizon), Hill(executed, 40.0), seeded(), editor, executed, **values)
    obs, base = torch.zeros(128, 1), torch.full((128, horizon, 1), 0.1)
    for _ in range(200):
        noise = editor.noise(128, algo.generator)
        loss, entropy, _ = algo.edit_loss(obs, base, noise, algo.temperature.value)
        algo.policy_opt.zero_grad()
        loss.backward()
        algo.policy_opt.step()
        algo.temperature.update(entropy)
    many = torch.full((4000, horizon, 1), 0.1)
    return editor.edit(torch.zeros(4000, 1), many, editor.noise(4000, seeded()))[0]


def dsrl(settings, horizon, executed):
    """The noise that a base is given, in the form without a noise critic."""
    values = settings("dsrl_sac", policy_lr=1e-2, alpha_lr=3e-2, ema_rate=1.0)
    for key in ("actor", "noise_map"):
        del values[key]
    codes = NoiseMap(horizon, kind="interpolated", rows=horizon, bound=1.5)
    actor = coded_gaussian(1, 1, rows=horizon, **SMALL)
    algo = DSRL(Shift(), Hill(executed), seeded(), actor, codes, None, executed, **values)
    obs = torch.zeros(128, 1)
    for _ in range(200):
        noise = actor.noise(128, algo.generator)
        loss, spread, _ = algo.policy_loss(obs, noise, algo.temperature.value)
        algo.policy_opt.zero_grad()
        loss.backward()
        algo.policy_opt.step()
        algo.temperature.update(spread)
    return codes(algo.sampled(torch.zeros(4000, 1), algo.generator)[0])


@pytest.mark.learns
@pytest.mark.parametrize(("learn", "known"), [(sac, 0.089), (expo, 0.031), (dsrl, 0.41)])
def test_steps_that_are_not_executed_take_nothing_from_the_exploration_of_those_that_are(
    learn, known, settings, flow
):
    """Over all steps alike sd fell from .089 to .030 (SAC), .031 to .005, and .41 to .14 (DSRL)."""
    more = (flow,) if learn is expo else ()
    alone = spread(learn(settings, 1, 1, *more), 1)
    assert alone == pytest.approx(known, rel=0.25)  # what is learned: it begins far wider
    for horizon, executed in ((4, 1), (6, 2)):
        found = spread(learn(settings, horizon, executed, *more), executed)
        assert found == pytest.approx(alone, rel=0.2), (horizon, executed)


def spread(action, executed):
    """Standard deviation of the executed steps."""
    return action[:, :executed].std(0).mean().item()


def test_soft_targets_count_the_density_of_executed_steps(settings):
    policy = TanhGaussian(1, 1, 3, **SMALL)
    algo = SAC(policy, Hill(2), seeded(), 2, **settings("sac"))
    assert algo.temperature.target == -2.0
    obs, noise = torch.randn(5, 1), torch.randn(5, 3, 1)
    batch = Batch(obs, torch.zeros(5, 3, 1), torch.ones(5), 0.9 * torch.ones(5), obs)
    loss, _ = algo.critic_loss(batch, noise, torch.tensor(0.2))
    mean, log_std = policy(obs)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squash = torch.distributions.TanhTransform()
    whole = torch.distributions.TransformedDistribution(normal, [squash])
    action = (mean + log_std.exp() * noise).tanh()
    logp = whole.log_prob(action)[:, :2].sum((1, 2))
    goal = 1 + 0.9 * (algo.target(obs, action)[0] - 0.2 * logp)
    q = algo.critic(obs, batch.action)[0]
    expected = (q - goal).square().mean()  # two members of one half each
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["interpolated", "lowrank"])
def test_the_rows_of_a_code_that_reach_executed_steps_are_those_with_weight_there(kind):
    for horizon in range(1, 7):
        for rows in range(1, horizon + 1):
            codes = NoiseMap(horizon, kind=kind, rows=rows, bound=1.0)
            assert codes.reach(None) == rows
            for executed in range(1, horizon + 1):
                touched = codes.matrix[:executed].abs().amax(0) > 1e-6
                assert touched[: codes.reach(executed)].any()
                assert not touched[codes.reach(executed) :].any()
                assert touched[codes.reach(executed) - 1]


def test_rfms_temperature_follows_the_spread_of_executed_steps(flow, critic, settings):
    """The first step of this policy is as wide as it should be, the others are far too wide."""
    rule = {"temperature_rule": "spread", "spread_target": 0.1}
    values = settings("rfm_box", **rule, policy_batch=512, walls=1.0)
    start, rate = values["temperature"], values["spread_rate"]
    wide = torch.tensor([0.1, 1.0, 1.0, 1.0])[:, None]
    for executed, gap in ((1, 0.0), (None, -1.0)):  # the step of log T, clamped to 1
        torch.manual_seed(0)
        algo = RFM(flow(2, 1, 4), critic(2, 1, 4), seeded(), executed, **values)
        algo.policy.integrate = lambda feat, noise, steps=None: wide * noise
        obs, zeros = torch.randn(512, 2), torch.zeros(512)
        metrics = algo.update_policy(Batch(obs, torch.zeros(512, 4, 1), zeros, zeros, obs))
        spread = 0.1 if executed else (0.1 + 3 * 0.62) / 4  # 0.62: of clipped normal noise, about
        assert metrics["policy/spread"].item() == pytest.approx(spread, rel=0.2)
        moved = (algo.log_temperature - torch.tensor(start).log()).item() / rate
        assert moved == pytest.approx(gap, abs=0.15)


# ------------------------------------------------------------------ on policy

NAMES = ["ppo", "reinflow", "dppo", "awm_gae", "nft"]
LEARN = {"epochs": 1, "minibatch": 64, "policy_lr": 3e-3, "value_lr": 3e-3, "lr_floor": 1.0}


def on_policy(name, flow, learner, executed, horizon=3, **changes) -> Any:
    """A small algorithm on policy whose plans are executed in part."""
    torch.manual_seed(0)
    policy: Any = flow(2, 1, horizon, steps=3)
    if name == "ppo":
        policy = Gaussian(2, 1, horizon, width=16, depth=1, activation="tanh", std=0.4)
    else:
        nn.init.normal_(policy.net.outlet.weight, std=0.1)
    if name == "dppo":
        policy.eta, changes = 1.0, {"tuned_steps": 3, **changes}
    if name == "reinflow":
        changes = {"anchor_coef": 0.5, "entropy_coef": 0.1, **changes}
    if name in ("awm_gae", "nft"):
        changes = {"trust_coef": 1.0, "anchor_coef": 0.5, **changes}
    if name == "nft":
        name, changes = "awm_gae", {"penalty": "nft", "advantage_max": 1.0, **changes}
    return learner(name, 2, 1, policy=policy, executed=executed, learn=LEARN, **changes)


def decisions(algo, rows=64):
    """One decision per row, worth -(a - 0.5)^2 of the first action; each ends its episode."""
    obs = torch.randn((rows, 2), generator=algo.generator)
    choice = algo.act(obs)
    reward = -(choice.action[:, 0, 0].clamp(-1, 1) - 0.5).square()
    kept = {name: value[None] for name, value in choice.kept.items()}
    none, ends = torch.zeros(1, rows), torch.ones((1, rows), dtype=torch.bool)
    one = torch.ones((1, rows), dtype=torch.int64)
    columns = obs[None], choice.action[None], reward[None], none, obs[None]
    return Rollout(*columns, ends, ends, one, kept)


def tails(algo, name, horizon, executed):
    """Parameters by which steps that are not executed are made, as slices of their tensors."""
    last = algo.policy.net.layers[-1] if name == "ppo" else algo.policy.net.outlet
    parts = [(last.weight, slice(executed, None)), (last.bias, slice(executed, None))]
    if name == "ppo":
        parts.append((algo.policy.log_std, slice(executed, None)))
    if name == "reinflow":
        out = algo.noise.net.layers[-1]
        parts += [(out.weight, slice(executed, None)), (out.bias, slice(executed, None))]
    return parts


@pytest.mark.parametrize("executed", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_on_policy_does_not_see_what_is_not_executed(flow, learner, name, executed):
    """Not the ratio, the clip, the entropy or the pulls: the tail may be anything, and rests."""
    algo = on_policy(name, flow, learner, executed)
    rows, _ = algo.judge(decisions(algo))
    which = torch.zeros(64, dtype=torch.int64)
    draws = algo.draw(rows)
    loss, metrics = algo.policy_loss(rows, which, *draws)
    assert metrics["policy/ratio_error"].item() < 1e-5  # the policy that acted
    parts = tails(algo, name, 3, executed)
    loss.backward()
    for tensor, tail in parts:
        assert not tensor.grad[tail].any() and tensor.grad[:executed].any()
    if name == "reinflow":  # the anchor integrates, where steps mix: only one step can tell
        algo.base = None
        loss, metrics = algo.policy_loss(rows, which)
    with torch.no_grad():
        for tensor, tail in parts:
            tensor[tail] += 0.7
    again, more = algo.policy_loss(rows, which, *draws)
    assert again.item() == pytest.approx(loss.item(), abs=1e-6)
    for key, value in metrics.items():
        assert more[key].item() == pytest.approx(value.item(), abs=1e-6), key
    with torch.no_grad():  # and a head that is executed is seen
        parts[1][0][:executed] += 0.1
    assert algo.policy_loss(rows, which, *draws)[1]["policy/ratio_error"] > 1e-4


@pytest.mark.parametrize("name", ["ppo", "reinflow", "dppo"])
def test_the_gradient_is_steadier_without_what_is_not_executed(flow, learner, name):
    """Deviation over mean of the policy's gradient, over fresh rollouts of one policy."""
    found = {}
    for executed in (1, None):
        changes: dict[str, Any] = {"anchor_coef": 0.0} if name == "reinflow" else {}
        algo = on_policy(name, flow, learner, executed, horizon=8, **changes)
        grads = []
        for _ in range(24):
            rows, _ = algo.judge(decisions(algo))
            which = torch.randint(algo.samples, (64,), generator=algo.generator)
            loss, _ = algo.policy_loss(rows, which)
            shared = [p for p in algo.policy.parameters() if p.requires_grad]
            parts = torch.autograd.grad(loss, shared, allow_unused=True)
            grads.append(torch.cat([part.flatten() for part in parts if part is not None]))
        many = torch.stack(grads)
        found[executed] = (many.var(0).sum().sqrt() / many.mean(0).norm()).item()
    assert found[1] < 0.75 * found[None], found


# ------------------------------------------------------------------ what the run tells


@pytest.mark.parametrize(
    "name",
    [
        "sac",
        "sac_flow",
        "dacer",
        "expo",
        "dsrl_na",
        "dsrl_sac",
        "rfm",
        "awm_q",
        "ppo",
        "reinflow",
        "dppo",
        "fpo",
    ],
)
def test_a_run_tells_how_many_steps_are_executed(name):
    words = [f"algo={name}", "env=inverted_pendulum", "horizon=4", "env.execute=3", "init=scratch"]
    cfg = compose(words)
    assert make_algo(cfg, Sizes(4, 1), 10).executed == 3
    cfg["env"]["execute"] = 4
    whole = make_algo(cfg, Sizes(4, 1), 10)
    assert whole.executed == 4
    if hasattr(whole, "temperature") and hasattr(whole.temperature, "target"):
        cfg["env"]["execute"] = 1
        part = make_algo(cfg, Sizes(4, 1), 10).temperature.target
        assert part == pytest.approx(whole.temperature.target / 4)


def test_recorded_data_tell_it_where_nothing_is_executed(episodes, tmp_path):
    data = episodes(tmp_path / "data.npz", [9, 30, 25, 40])
    words = ["algo=awm", f"data={data}", "horizon=4"]
    assert make_algo(compose([*words, "source.execute=2"]), Sizes(3, 2), 10).executed == 2
    assert make_algo(compose(words), Sizes(3, 2), 10).executed == 4
    cloning = make_algo(compose(["algo=bc", *words[1:]]), Sizes(3, 2), 10)
    assert cloning.executed is None  # it is not asked for: plans are cloned whole
