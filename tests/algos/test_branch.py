"""Branches of one noisy step: against closed forms of affine fields; what they do to a policy."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rheo.algos import branching
from rheo.algos.branch import Branch
from rheo.algos.optim import step
from rheo.envs.batch import Batch
from rheo.policies.critics import StepValue
from rheo.policies.normalize import Normalizer

WAYS = ("branch", "b2", "g2rpo", "solrl", "talk2move", "tracerl")
SLOPES, SHIFTS = [-1.5, 0.8, -0.4, 1.2], [0.3, -0.1, 0.2, 0.1]


class Affine(nn.Module):
    """v = slope_k x + shift_k in the k-th of the steps, whatever is observed."""

    def __init__(self, slopes=SLOPES, shifts=SHIFTS):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slopes))
        self.shift = nn.Parameter(torch.tensor(shifts))

    def encode(self, obs: Tensor) -> Tensor:
        return obs

    def embed(self, t: Tensor) -> Tensor:
        return t[..., None]

    def forward(self, x: Tensor, emb: Tensor, feat: Tensor) -> Tensor:
        count = len(self.slope)
        k = (emb[..., 0] * count + 1e-4).long().clamp(max=count - 1)[..., None, None]
        return self.slope[k] * x + self.shift[k]


class Slope(nn.Module):
    """Q = g sum a of a plan, both members."""

    members = 2

    def __init__(self, g=1.0):
        super().__init__()
        self.g = nn.Parameter(torch.tensor(g))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        value = self.g * action.sum((-1, -2))
        return torch.stack([value, value])


@pytest.fixture
def learner(flow: Any, settings: Any, generator: Any) -> Callable[..., Any]:
    """A small policy that is tuned by a known critic."""

    def make(name: str, policy: Any = (), run_updates: int = 100, **changes: Any) -> Any:
        judge: Any = changes.pop("critic", Slope())
        made: Any = policy if isinstance(policy, nn.Module) else flow(1, 1, **dict(policy))
        executed = changes.pop("executed", None)
        values = settings(name, **changes)
        node = values.pop("value", None)
        if isinstance(node, dict):
            size = {key: node[key] for key in ("layer_norm", "activation")}
            size |= {"width": 32, "depth": 2, "obs_norm": Normalizer(1, kind="none")}
            node = StepValue(1, 1, made.horizon, **size)
        given = {"value": node, "executed": executed}
        return Branch(made, judge, generator, run_updates, **given, **values)

    return make


@pytest.fixture
def affine(flow: Any) -> Callable[..., Any]:
    """A policy with an affine field in four steps, whose actions x / 10 are far inside the box."""

    def make(horizon: int = 1) -> Any:
        tenth = Normalizer(1, kind="gaussian")
        tenth.fit(torch.tensor([[-0.1], [0.1]]))
        policy = flow(1, 1, horizon, steps=4, action_norm=tenth)
        policy.net = Affine()
        return policy

    return make


def moved(policy: Any, size: float = 0.05) -> None:
    """Adds a number to every parameter."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size)


# ---- completions -------------------------------------------------------------------------------

POLICIES: dict[str, dict[str, Any]] = {
    "flow": {"steps": 5},
    "late": {"steps": 4, "grid": "late"},
    "cosine": {"steps": 4, "path": "cosine", "prediction": "eps", "clip_a": True},
    "table": {
        "steps": 5, "path": "betas", "levels": 10, "betas": "vp", "prediction": "eps",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", POLICIES)
def test_a_chain_that_goes_on_ends_where_it_would_have_ended(flow, generator, kind):
    """From every one of its points, rows at different ones, as `act` does."""
    policy = flow(2, 3, 2, **POLICIES[kind])
    moved(policy)
    steps = policy.steps
    obs, noise = torch.randn(4 * steps, 2), policy.noise(4 * steps, generator)
    feat, which = policy.features(obs), torch.arange(4 * steps) % steps
    chain = branching.points(policy, feat, noise)
    assert torch.equal(chain[:, 0], noise) and chain.shape == (4 * steps, steps, 2, 3)
    at = policy.times()[which + 1]
    x, _ = policy.step(chain[torch.arange(4 * steps), which], policy.times()[which], at, feat)
    end = branching.completed(policy, feat, x[:, None].expand(-1, 3, -1, -1), at)
    expected = policy.act(obs, noise)[:, None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(policy.to_action(end), expected, rtol=1e-4, atol=1e-5)


def test_fewer_steps_go_straight_over_what_is_left_of_their_grid(affine):
    """x + (1 - t) v by one step; by two over t = 1/2, where that still lies ahead."""
    policy, x = affine(), torch.tensor([0.3, -0.2, 0.1, 0.4])[:, None, None, None]
    since, feat = torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.zeros(4, 1)
    slope, shift = SLOPES, SHIFTS

    def line(value: float, k: int, span: float) -> float:
        return value + span * (slope[k] * value + shift[k])

    one = branching.completed(policy, feat, x, since, 1).flatten().tolist()
    assert one == pytest.approx([line(0.3, 1, 0.75), line(-0.2, 2, 0.5), line(0.1, 3, 0.25), 0.4])
    two = branching.completed(policy, feat, x, since, 2).flatten().tolist()
    over = line(line(0.3, 1, 0.25), 2, 0.5)
    assert two == pytest.approx([over, line(-0.2, 2, 0.5), line(0.1, 3, 0.25), 0.4])


def test_a_chain_that_is_not_on_yet_waits_as_it_is(flow):
    """Also where steps are clipped to the box and noise has led out of it."""
    policy, x = flow(1, 1, steps=4, clip_x=True), torch.full((2, 1, 1, 1), 1.5)
    since, feat = torch.tensor([1.0, 0.75]), policy.features(torch.zeros(2, 1))
    last, _ = policy.step(x[1:], since[1:], torch.ones(1), feat[1:])
    end = branching.completed(policy, feat, x, since)
    assert end[0].item() == 1.5
    torch.testing.assert_close(end[1:], last)


def test_advantages_add_up_over_completions(learner, affine):
    algo = learner("g2rpo", affine(), completions=[1, 2], deviation="state")
    first, second, third = torch.randn(3, 5, 8).unbind()
    found = algo.compared([first, second, third])
    parts = [(q - q.mean(1, keepdim=True)) / q.std(1, correction=0, keepdim=True)
             for q in (first, second, third)]  # fmt: skip
    torch.testing.assert_close(found, sum(parts), rtol=1e-3, atol=1e-3)


def test_a_completion_in_one_step_judges_too(learner, affine):
    """Q that differs between both ends: the advantage is the sum of both."""

    class Bend(Slope):
        def forward(self, obs, action):
            return super().forward(obs, action.square())

    for name in ("branch", "g2rpo"):
        algo = learner(name, affine(), critic=Bend(100.0), std=0.3)
        met, _ = algo.meet(torch.zeros(64, 1))
        feat, since = torch.zeros(64, 1), algo.policy.times()[met.which + 1]
        counts = [None, 1] if name == "g2rpo" else [None]
        ends = [branching.completed(algo.policy, feat, met.after, since, n) for n in counts]
        q = [100 * algo.policy.to_action(end).square().flatten(2).sum(-1) for end in ends]
        torch.testing.assert_close(met.advantage, algo.compared(q), rtol=1e-4, atol=1e-4)
        if name == "g2rpo":
            assert not torch.allclose(q[0], q[1], atol=1e-2)


# ---- the noisy step ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("kind", POLICIES)
def test_the_first_ratio_is_one_and_the_next_is_not(learner, name, kind):
    algo = learner(name, POLICIES[kind], inner_steps=1)
    obs = torch.randn(16, 1)
    met, _ = algo.meet(obs)
    assert algo.policy_loss(obs, met)[1]["policy/ratio_error"].item() == 0.0
    moved(algo.policy)
    assert algo.policy_loss(obs, met)[1]["policy/ratio_error"].item() > 1e-4


def test_without_noise_there_is_no_advantage_and_no_gradient(learner, affine):
    for std in (1e-12, 0.1):
        algo = learner("branch", affine(), std=std)
        obs = torch.zeros(16, 1)
        met, _ = algo.meet(obs)
        loss, _ = algo.policy_loss(obs, met)
        loss.backward()
        silent = all(bool((p.grad == 0).all()) for p in algo.policy.parameters())
        assert silent == (std < 0.1) == bool((met.advantage == 0).all())


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_noise_falls_along_the_chain_by_its_power(learner, affine, power):
    algo = learner("branch", affine(), std=0.2, std_power=power, branches=2000)
    met, _ = algo.meet(torch.zeros(16, 1))
    expected = 0.2 * (1 - met.which / 4) ** power
    torch.testing.assert_close(met.std.flatten(), expected)
    found = met.after.std(1).flatten()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0)


def test_branches_part_where_the_step_leads(learner, affine):
    """Their mean is the next point of the deterministic chain, their density the step's normal."""
    algo = learner("branch", affine(2), branches=4000, executed=1)
    met, _ = algo.meet(torch.zeros(8, 1))
    k = met.which[:, None, None]
    net = algo.policy.net
    mean = met.x + 0.25 * (net.slope[k] * met.x + net.shift[k])
    torch.testing.assert_close(met.after.mean(1), mean, rtol=0, atol=0.01)
    law = torch.distributions.Normal(mean[:, None], met.std)
    expected = law.log_prob(met.after)[:, :, 0].mean(-1)  # of the executed step alone
    torch.testing.assert_close(met.old, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_steps_density(learner, affine):
    """d loss / d shift_k = -mean A (x' - mean) dt / std^2 over the rows that part at k."""
    algo = learner("branch", affine())
    obs = torch.zeros(64, 1)
    met, _ = algo.meet(obs)
    algo.policy_loss(obs, met)[0].backward()
    k, net = met.which[:, None, None], algo.policy.net
    mean = met.x + 0.25 * (net.slope[k] * met.x + net.shift[k])
    pull = met.advantage * ((met.after - mean[:, None]) / met.std.square() * 0.25).flatten(1)
    for part in range(4):
        expected = -(pull * (met.which == part)[:, None]).mean()
        torch.testing.assert_close(net.shift.grad[part], expected, rtol=1e-4, atol=1e-6)
    assert (net.shift.grad < 0).all()  # a larger action is worth more


# ---- which step --------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [1, 2, 3, 4])
def test_no_gradient_is_outside_the_window(learner, affine, wide):
    algo = learner("b2", affine(), run_updates=100, window_share=1.0)
    algo.updates = 25 * wide - 10
    algo.begin()
    assert algo.window.item() == wide
    obs = torch.zeros(256, 1)
    met, _ = algo.meet(obs)
    algo.policy_loss(obs, met)[0].backward()
    for grad in (algo.policy.net.slope.grad, algo.policy.net.shift.grad):
        assert ((grad != 0) == (torch.arange(4) >= 4 - wide)).all()


def test_the_window_grows_over_its_share_of_the_run(learner, affine):
    algo, seen = learner("b2", affine(), run_updates=16, window_share=0.5), []
    for _ in range(16):
        algo.begin()
        seen.append(int(algo.window))
    assert seen == [1, 1, 2, 2, 3, 3, 4, 4, *[4] * 8]
    whole = learner("b2", affine(), window_share=0.0)
    whole.begin()
    assert whole.window.item() == 4


def test_steps_are_drawn_in_proportion_to_their_weights():
    weight = torch.tensor([0.0, 3.0, 0.0, 1.0])
    share = (torch.arange(4000) + 0.5) / 4000
    count = torch.bincount(branching.drawn(weight, share), minlength=4)
    assert count.tolist() == [0, 3000, 0, 1000]
    ends = torch.tensor([0.0, 1.0])  # a share that was rounded up is of the last one
    assert branching.drawn(weight, ends).tolist() == [1, 3]


def chain_variance(g: float, std: float) -> list[float]:
    """(g prod_{j > k} A_j)^2 std^2 of the affine field, A_j = 1 + slope_j / 4, by step k."""
    factor = [1 + slope / 4 for slope in SLOPES]
    return [(g * math.prod(factor[k + 1 :]) * std) ** 2 for k in range(4)]


def test_the_variance_of_q_is_that_of_a_linear_chain(learner, affine):
    """Which also ranks the steps that `active` has to pick."""
    algo = learner("talk2move", affine(), critic=Slope(17.0), std=0.05, branches=64)
    expected = torch.tensor(chain_variance(1.7, 0.05))
    for _ in range(60):
        algo.meet(torch.zeros(64, 1))
    torch.testing.assert_close(algo.tally[0] / algo.tally[1], expected, rtol=0.05, atol=0)
    share = branching.active(algo.tally)
    known = 0.9 * expected / expected.sum() + 0.1 / 4
    torch.testing.assert_close(share, known, rtol=0.05, atol=0)
    assert torch.equal(share.argsort(), expected.argsort())


def test_a_step_that_was_never_met_is_as_likely_as_the_most_active_one():
    tally = torch.tensor([[0.0, 4.0, 0.0, 1.0], [0.0, 2.0, 3.0, 1.0]])
    spread = torch.tensor([2.0, 2.0, 0.0, 1.0])
    torch.testing.assert_close(branching.active(tally), 0.9 * spread / 5 + 0.025)
    torch.testing.assert_close(branching.active(0 * tally), torch.full((4,), 0.025))


# ---- pools and pairs ---------------------------------------------------------------------------


@pytest.mark.parametrize("keeps", ["ends", "best"])
def test_a_pool_of_as_many_as_are_kept_is_none(learner, flow, keeps):
    """To the last bit, whatever the cheap values say."""
    found = []
    for pool in (None, 8):
        torch.manual_seed(0)
        algo = learner("solrl", flow(1, 1), pool=pool, pool_keeps=keeps)
        algo.generator.manual_seed(3)
        found.append(algo.meet(torch.linspace(-1, 1, 16)[:, None])[0])
    for plain, pooled in zip(*found, strict=True):
        assert plain is None or torch.equal(plain, pooled)


def test_the_ends_or_the_best_of_a_pool_go_on_in_their_order():
    value = torch.tensor([[3.0, 0.0, 5.0, 1.0, 4.0, 2.0]])
    assert branching.kept(value, 4, ends=True).tolist() == [[1, 2, 3, 4]]
    assert branching.kept(value, 3, ends=False).tolist() == [[0, 2, 4]]
    assert branching.kept(value, 6, ends=True).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("keeps", ["ends", "best"])
def test_what_a_pool_keeps_lies_where_its_cheap_values_do(learner, affine, keeps):
    algo = learner("solrl", affine(), pool=16, branches=4, pool_keeps=keeps)
    after, since = 0.1 * torch.randn(8, 16, 1, 1), algo.policy.times()[1:2].expand(8)
    obs = torch.zeros(8, 1)
    left, cheap = algo.parted(obs, obs, after, since)
    every = algo.worth(obs, obs, after, since, 1).sort(1).values
    known = every[:, 12:] if keeps == "best" else every[:, [0, 1, 14, 15]]
    assert torch.equal(cheap.sort(1).values, known)
    assert torch.equal(algo.worth(obs, obs, left, since, 1), cheap)


def test_ranks_agree_where_the_cheap_value_is_the_full_one(learner, flow):
    """At the last step nothing is left to complete."""
    algo = learner("solrl", flow(1, 1), kicked="window")
    _, metrics = algo.meet(torch.randn(16, 1))
    assert metrics["policy/step"].item() == algo.policy.steps - 1
    assert metrics["policy/rank_correlation"].item() == pytest.approx(1.0)


def test_the_correlation_of_ranks_by_hand():
    """1 - 6 sum d^2 / (n (n^2 - 1)) over the differences of ranks d."""
    one = torch.tensor([[10.0, 20.0, 30.0, 40.0, 50.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    other = torch.tensor([[0.1, 0.3, 0.2, 0.5, 0.4], [0.0, 1.0, 2.0, 3.0, 9.0]])
    first, second = 1 - 6 * 4 / (5 * 24), -1.0
    found = branching.rank_correlation(one, other).item()
    assert found == pytest.approx((first + second) / 2)


def test_antithetic_branches_cancel_what_is_linear(learner, affine):
    """The mean over branches is what the chain without noise is worth; of free ones it is not."""
    for antithetic in (True, False):
        algo = learner("branch", affine(), antithetic=antithetic, std=0.05)
        met, _ = algo.meet(torch.zeros(64, 1))
        since, obs = algo.policy.times()[met.which + 1], torch.zeros(64, 1)
        plain = algo.worth(obs, obs, algo.mean(obs, met.x, met.which)[:, None], since)[:, 0]
        gap = (algo.worth(obs, obs, met.after, since).mean(1) - plain).abs().max()
        assert (gap < 1e-5) == antithetic


# ---- values of points --------------------------------------------------------------------------


def test_advantages_are_over_the_value_of_the_point_where_there_is_one(learner, affine):
    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor:
            return 0.3 * obs[:, 0] + x.sum((-1, -2)) - t

    algo = learner("tracerl", affine(), critic=Slope(10.0), value=Known(), advantage_clip=100.0)
    obs = torch.randn(16, 1)
    met, _ = algo.meet(obs)
    q = algo.worth(obs, obs, met.after, algo.policy.times()[met.which + 1])
    over = q - (0.3 * obs[:, 0] + met.x.flatten() - met.which / 4)[:, None]
    torch.testing.assert_close(met.advantage, over / (over.std(correction=0) + 1e-4))
    assert met.advantage.mean(1).abs().min() > 1e-3  # not centred among each other
    torch.testing.assert_close(met.worth, q.mean(1))


@pytest.mark.learns
def test_a_value_of_points_becomes_what_the_rest_of_the_chain_makes_of_them(learner, affine):
    """Of an affine field and a linear Q what the chain without noise is worth."""
    algo = learner("tracerl", affine(), critic=Slope(10.0), std=0.05, critic_lr=3e-3)
    obs, errors = torch.zeros(64, 1), []
    for _ in range(300):
        met, _ = algo.meet(obs)
        loss = algo.value_loss(obs, met)
        errors.append(loss.item())
        step(algo.value_opt, loss)
    met, _ = algo.meet(obs)
    since = algo.policy.times()[met.which + 1]
    plain = algo.worth(obs, obs, algo.mean(obs, met.x, met.which)[:, None], since)[:, 0]
    value = algo.value(obs, met.x, algo.policy.times()[met.which])
    left = (value - plain).square().mean() / plain.var()
    assert left < 0.1 and errors[0] > 0.1


# ---- a policy ----------------------------------------------------------------------------------


@pytest.mark.learns
@pytest.mark.parametrize("name", WAYS)
def test_every_way_moves_the_policy_to_what_the_critic_prefers(learner, name):
    algo = learner(name, policy_lr=3e-3, window_share=0.5)
    obs, draws = torch.zeros(64, 1), torch.Generator().manual_seed(5)
    start = algo.policy.noise(2000, draws)
    before = algo.average.act(torch.zeros(2000, 1), start).mean()
    for _ in range(40):
        algo.begin()
        algo.update_policy(obs)
    assert algo.average.act(torch.zeros(2000, 1), start).mean() > before + 0.1


def test_paths_are_held_to_the_start_by_the_divergence_of_the_noisy_step(learner, affine):
    """0 at first; (dt shift)^2 / (2 std^2) of every executed element after a shift."""
    pulls = [{"kind": "path", "coef": 0.7}]
    algo, obs = learner("branch", affine(3), pulls=pulls, executed=2), torch.zeros(16, 1)
    met, _ = algo.meet(obs)
    assert algo.policy_loss(obs, met)[1]["policy/path_kl"].item() == 0.0
    with torch.no_grad():
        algo.policy.net.shift.add_(0.2)
    loss, metrics = algo.policy_loss(obs, met)
    known = 2 * (0.25 * 0.2) ** 2 / (2 * 0.1**2)
    assert metrics["policy/path_kl"].item() == pytest.approx(known, rel=1e-4)
    algo.anchoring.parts["path"].coef.zero_()
    free = algo.policy_loss(obs, met)[0]
    assert (loss - free).item() == pytest.approx(0.7 * known, rel=1e-3)


def test_a_relative_critic_looks_from_the_start_of_the_run(learner, flow, critic):
    algo = learner("branch", critic=critic(1, 1), relative=True)
    nn.init.normal_(algo.origin.net.outlet.weight, std=0.3)  # where the critic began
    moved(algo.policy, 0.2)  # and what has become of the policy
    obs = torch.randn(64, 1)
    batch = Batch(obs, torch.rand(64, 1, 1), torch.zeros(64), torch.zeros(64), -obs)
    (here,), (ahead,) = algo.told(batch)
    for centre, seen in ((here, obs), (ahead, -obs)):
        torch.testing.assert_close(centre, algo.origin.act(seen, torch.zeros(64, 1, 1)))
    assert algo.critic.measured and algo.target.measured
    met, _ = algo.meet(obs)
    end = branching.completed(algo.policy, algo.policy.features(obs), met.after,
                              algo.policy.times()[met.which + 1])  # fmt: skip
    action = (algo.policy.to_action(end) - here[:, None]) / algo.target.spread
    q = algo.target.critic(obs[:, None], action).amin(0)
    torch.testing.assert_close(met.advantage, algo.compared([q]), rtol=1e-3, atol=1e-3)
    algo.update(batch)


@pytest.mark.parametrize(
    ("policy", "changes", "told"),
    [
        ({}, {"kicked": "first"}, "algo.kicked='first': choose uniform, window or active"),
        ({}, {"pool_keeps": "worst"}, "algo.pool_keeps='worst': choose ends or best"),
        ({}, {"deviation": "all"}, "algo.deviation='all': choose batch or state"),
        ({"sampler": "heun"}, {}, "policy.sampler=heun: .* use policy.sampler=euler"),
        ({}, {"branches": 1}, "algo.branches=1: an advantage needs at least 2"),
        ({"steps": 3}, {"completions": [3]}, r"algo.completions=\[3\]: .* below policy.steps=3"),
        ({}, {"completions": [1, 1]}, r"algo.completions=\[1, 1\]: once each"),
        ({}, {"pool": 4}, "algo.pool=4: fewer than algo.branches=8"),
        ({}, {"branches": 7, "antithetic": True}, "algo.branches=7: pairs need an even number, 8"),
        ({}, {"pool": 9, "antithetic": True}, "algo.pool=9: pairs need an even number, 10"),
        ({}, {"branches": 7, "pool": 9}, "algo.branches=7: the halves of algo.pool_keeps=ends"),
        (
            {},
            {
                "value": StepValue(1, 1, 1, width=8, depth=1, layer_norm=False, activation="tanh"),
                "completions": [1],
            },
            r"algo.completions=\[1\] with algo.value",
        ),
        ({}, {"relative": True, "pulls": []}, "algo.relative=true: .* entry of kind path"),
        (
            {},
            {"relative": True, "pulls": [{"kind": "path", "coef": 1, "every": 9}]},
            "relative=true",
        ),
        ({}, {"pulls": [{"kind": "velocity", "coef": 1}]}, "this algorithm has path, data"),
    ],
)
def test_values_that_do_not_go_together_are_refused(learner, policy, changes, told):
    with pytest.raises(ValueError, match=told):
        learner("branch", policy, **changes)
