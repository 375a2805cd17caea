"""Which copy is asked, and which copy follows: one test over every algorithm off policy.

Slow copies follow their network by their own rate, everything else rests; a TD target asks the
copies that the method names, which are set apart by hand so that no other copy gives its value.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from shipped import ACTING, config, text
from torch import Tensor, nn

from rheo.envs.batch import Batch
from rheo.scripts.assemble import Sizes, make_algo

SIZES, ROWS = Sizes(3, 2), 16
RATES = {"target_rate": 0.3, "ema_rate": 0.2, "trust_rate": 0.45, "behaviour_rate": 0.35}
TARGET, AVERAGE = ("critic", "target_rate"), ("policy", "ema_rate")
# algorithm -> slow copies beside what its rates ask for, the network that each follows, the rate
BESIDE: dict[str, dict[str, tuple[str, str] | None]] = {
    **dict.fromkeys(("td3", "td3bc"), {"slow": ("policy", "target_rate")}),
    **dict.fromkeys(("awm_q", "awm_q_tune"), {"fast": ("policy", "trust_rate")}),
    "qam": {"slow": ("behaviour", "behaviour_rate")},
    "fisor": {"cost_target": ("cost_critic", "target_rate")},
    **dict.fromkeys(("dsrl_na", "dsrl_sac"), {"slow": ("actor", "ema_rate"), "average": None}),
    "rfs": {
        "slow": ("actor", "ema_rate"),
        "slow_editor": ("editor", "ema_rate"),
        "average": None,
    },
}


def follows(name: str) -> dict[str, tuple[str, str]]:
    """Slow copy -> the network that it follows, and the rate."""
    rates = config(name)["algo"]
    usual = {"target": TARGET, "average": AVERAGE}
    copies = {copy: pair for copy, pair in usual.items() if pair[1] in rates}
    return {k: pair for k, pair in (copies | BESIDE.get(name, {})).items() if pair is not None}


# whose parts do not learn in one update, or from batches of their own: test_gate.py,
# test_gendrive.py, test_ctrl.py, test_subgoal.py, test_plan.py
TURNS = ("rl100", "gendrive", "ctrl", "subgoal", "plan", "align")
OFF_POLICY = [name for name in ACTING if "\n  learn:" not in text(name) and name not in TURNS]
# what turns optional copies on
OPTIONS: dict[str, dict[str, Any]] = {
    "awm": {"signed_coef": 0.5, "bc_coef": 1.0},
    "awm_q": {"anchor_coef": 0.5},
    "rfm": {"target_candidates": 3, "target_noise": 1.0},
    **dict.fromkeys(("dql", "ofql", "tdm"), {"target_candidates": 3}),
}
# algorithm -> the copy whose action is backed up, and how the critics are joined
BACKS_UP: dict[str, tuple[str, str]] = {
    "td3": ("slow", "min"),
    "td3bc": ("slow", "min"),
    "dql": ("average", "min"),
    "ofql": ("average", "min"),
    "tdm": ("average", "min"),
    "dac": ("average", "lcb"),
    "qsm": ("average", "min"),
    "dpmd": ("average", "min"),
    "fpmd": ("average", "min"),
    "qvpo": ("average", "min"),
    **dict.fromkeys(("crd", "dpo", "d3po", "branch"), ("average", "min")),
    "fql": ("head", "mean"),
    "qam": ("policy", "lcb"),
    **dict.fromkeys(("rfm", "flame"), ("policy", "min")),
    "awm_q": ("average", "min"),
    "expo": ("average", "min"),
    "dsrl_na": ("actor", "min"),
    "dsrl_sac": ("actor", "min"),
    "rfs": ("actor", "min"),
    **dict.fromkeys(("dacer", "sac", "sac_flow"), ("policy", "min")),
}
EXPECTILE = ("iql", "iql_gaussian", "fisor", "awm", "rfm_offline", "cfgrl", "rl100")


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a configuration."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from nodes(value)


@pytest.fixture
def made(shipped_as: Any) -> Any:
    """Makes algorithms: `made(name, **changes)`."""

    def make(name: str, **changes: Any) -> Any:
        """An algorithm as it ships, on small networks without statistics, slow copies at RATES."""
        tree = shipped_as(name)
        for node in nodes(tree):
            if str(node.get("_target_")).endswith("Normalizer"):
                node["kind"] = "none"
            node |= {key: value for key, value in {"width": 16, "depth": 1}.items() if key in node}
        values = {**OPTIONS.get(name, {}), **RATES, **changes}
        tree["algo"] |= {key: value for key, value in values.items() if key in tree["algo"]}
        return make_algo(tree, SIZES, 100)

    return make


def batch_of(seed: int) -> Batch:
    """Random transitions of single actions."""
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn((2, ROWS, SIZES.obs_dim), generator=g)
    action = 1.8 * torch.rand((ROWS, 1, SIZES.action_dim), generator=g) - 0.9
    reward, discount = torch.rand((2, ROWS), generator=g)
    return Batch(obs, action, reward, discount, next_obs, reward.round())


def networks(algo: Any) -> dict[str, nn.Module]:
    """The modules of an algorithm that have weights, by name."""
    modules = {name: part for name, part in vars(algo).items() if isinstance(part, nn.Module)}
    return {name: part for name, part in modules.items() if any(True for _ in part.parameters())}


def flat(module: nn.Module) -> Tensor:
    """All parameters of a module end to end."""
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def optimised(algo: Any) -> set[int]:
    """Identities of the parameters that some optimiser moves."""
    held = [part for part in vars(algo).values() if isinstance(part, torch.optim.Optimizer)]
    return {id(p) for part in held for group in part.param_groups for p in group["params"]}


def scatter(algo: Any) -> None:
    """Random weights for every copy, so that no two are alike."""
    g = torch.Generator().manual_seed(5)
    for name, module in networks(algo).items():
        for p in module.parameters():
            if name in slow_copies() or id(p) in optimised(algo):
                p.data += 0.05 * torch.randn(p.shape, generator=g)


@cache
def slow_copies() -> set[str]:
    """The names that slow copies have in any algorithm."""
    return {copy for name in OFF_POLICY for copy in follows(name)}


@pytest.mark.parametrize("name", OFF_POLICY)
def test_every_slow_copy_follows_its_network_by_its_rate_and_all_else_rests(made, name):
    algo, copies = made(name), follows(name)
    scatter(algo)
    every = getattr(algo, "policy_every", 1)
    for k in range(every - 1):  # the policy's turn is the one that is looked at
        algo.update(batch_of(k))
    before = {key: flat(module) for key, module in networks(algo).items()}
    algo.update(batch_of(every))
    moved = optimised(algo)
    for key, old in before.items():
        module = getattr(algo, key)
        new = flat(module)
        if key in copies:
            source, rate = copies[key]
            lead = flat(getattr(algo, source))
            expected = old + RATES[rate] * (lead - old)
            torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-6, msg=f"{name}.{key}")
            assert not torch.equal(new, old), f"{name}.{key} does not follow"
        elif any(id(p) in moved for p in module.parameters()):
            assert not torch.equal(new, old), f"{name}.{key} does not learn"
        else:
            assert torch.equal(new, old), f"{name}.{key} should rest"


def saturate(policy: Any, sign: float) -> None:
    """Lets a policy answer `sign` in every dimension, whatever the noise."""
    linear = [part for part in policy.modules() if isinstance(part, nn.Linear)]
    last: Any = getattr(getattr(policy, "net", None), "outlet", linear[-1])
    nn.init.zeros_(last.weight)
    against = getattr(policy, "prediction", "v") == "eps"  # of the noise: the action lies opposite
    nn.init.constant_(last.bias, -50.0 * sign if against else 50.0 * sign)


@pytest.mark.parametrize("name", BACKS_UP)
def test_a_td_target_asks_the_copies_that_the_method_names(made, name):
    """Every policy that could be asked answers +1, the right one -1; critic and target differ."""
    off: dict[str, Any] = {"target_noise": 0.0, "target_candidates": 1, "relative": False}
    algo = made(name, alpha=1e-30, edit_alpha=1e-30, rho=1.0, **off)
    scatter(algo)
    who, join = BACKS_UP[name]
    acting = type(getattr(algo, who))
    for part in networks(algo).values():
        if type(part) is acting:
            saturate(part, 1.0)
    saturate(getattr(algo, who), -1.0)
    if hasattr(algo, "editor"):
        algo.editor.scale = 0.0
    batch = batch_of(0)
    with torch.no_grad():
        value = algo.target(batch.next_obs, -torch.ones_like(batch.action))
        joined = {"mean": value.mean(0), "min": value.amin(0)}
        value = (joined | {"lcb": value.mean(0) - value.std(0, correction=0)})[join]
        goal = batch.reward + batch.discount * value
        expected = 0.5 * (algo.critic(batch.obs, batch.action) - goal).square().mean(1).sum()
    found = algo.update(batch)["critic/loss"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXPECTILE)
def test_an_expectile_critic_asks_the_slow_critic_for_advantages_and_v_for_targets(made, name):
    algo = made(name)
    scatter(algo)
    batch = batch_of(0)
    with torch.no_grad():
        goal = batch.reward + batch.discount * algo.value(batch.next_obs)
        expected = 0.5 * (algo.critic(batch.obs, batch.action) - goal).square().mean(1).sum()
        gap = algo.target(batch.obs, batch.action).amin(0) - algo.value(batch.obs)
    metrics = algo.update(batch)
    torch.testing.assert_close(metrics["critic/loss"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(metrics["critic/advantage"], gap.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["rfm", "dql", "ofql"])
def test_the_best_of_several_next_actions_is_chosen_and_valued_by_the_named_critics(made, name):
    """RFM's critic chooses and the slow one values; of dql's and ofql's, the slow one does both."""
    algo = made(name)
    scatter(algo)
    policy = getattr(algo, BACKS_UP[name][0])
    batch, state = batch_of(0), algo.generator.get_state()
    with torch.no_grad():
        noise = policy.noise((ROWS, 3), algo.generator)
        action = policy.act(batch.next_obs, noise)
        values = algo.target(batch.next_obs[:, None], action)  # [E, B, 3]
        value = values.amax(2).amin(0)
        if name == "rfm":
            choice = algo.critic(batch.next_obs[:, None], action).amin(0).argmax(1)
            value = values.amin(0)[torch.arange(ROWS), choice]
            assert (choice != values.amin(0).argmax(1)).any()
        goal = batch.reward + batch.discount * value
        expected = 0.5 * (algo.critic(batch.obs, batch.action) - goal).square().mean(1).sum()
    algo.generator.set_state(state)
    torch.testing.assert_close(algo.update(batch)["critic/loss"], expected, rtol=1e-5, atol=1e-6)
