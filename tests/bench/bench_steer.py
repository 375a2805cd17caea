"""Steering a frozen policy: an update, how much of it is the base's, and choosing among samples."""

from collections.abc import Iterator
from functools import partial

import torch

from rheo.policies.candidates import sample
from rheo.scripts.assemble import Sizes, make_algo
from rheo.scripts.config.compose import compose
from rheo.scripts.fast import fast
from rheo.scripts.limits import transitions
from rheo.scripts.paired import Goal, Plan, Row, alternate, faster, shorter

SIZES, HORIZON, ROWS = Sizes(obs_dim=11, action_dim=3), 4, 256  # of Hopper, in chunks
WORDS = (
    "algo=dsrl_na", "init=scratch", "env=hopper", f"horizon={HORIZON}", "policy.steps=5",
    "critic.width=128", "algo.actor.width=128", "algo.noise_critic.width=128",
)  # fmt: skip
EAGER, ANEW, ONE = "default eager", "base called anew", "one sample"


def measure(plan: Plan) -> Iterator[Row]:
    """DSRL-NA with Hopper's published sizes, compiled unless told otherwise; best-of-16.

    Its update is timed with the shipped batch too, which is smaller than the published one.
    """
    cfg = compose(WORDS)
    mode = plan.fast or ("off" if plan.quick else "compile")
    eager, ours = (make_algo(cfg, SIZES, cfg["steps"]) for _ in range(2))
    updates = [fast(eager, "off"), fast(ours, mode)]
    turn = cfg["algo"]["distill_every"]
    goal = (Goal("ratio", ">=", 1.3),)
    for rows in (cfg["source"]["batch_size"], ROWS):
        batch = transitions(rows, torch.Generator().manual_seed(0), SIZES, HORIZON)
        known = batch._replace(memo=ours.remember(batch))
        sides = {"ours": partial(updates[1], known), EAGER: partial(updates[0], known)}
        times = alternate(plan, sides, block=turn, cpu=True)
        name = f"DSRL-NA update, Hopper, batch {rows}, {mode}"
        yield faster(Row(name, "updates/s", 0.0, goals=goal), times, EAGER)

    sides = {"ours": lambda: updates[1](known), ANEW: lambda: updates[1](batch)}
    times = alternate(plan, sides, block=turn, cpu=True)
    yield faster(Row("DSRL-NA update, base remembered", "updates/s", 0.0), times, ANEW)

    code = torch.rand(ROWS, HORIZON, SIZES.action_dim) - 0.5
    base = torch.no_grad()(lambda: ours.decode(batch.next_obs, code))  # for the targets
    sides = {"ours": base, "all": lambda: updates[1](known)}
    times = alternate(plan, sides, block=turn, cpu=True)
    yield shorter(Row("DSRL-NA, base in an update", "us", 0.0), times, "all")

    policy, generator = ours.policy, torch.Generator()
    critic = ours.critic.critic  # plain: a relative one asks the base once more
    obs = torch.randn(1, SIZES.obs_dim)
    sides = {
        "ours": lambda: sample(policy, critic, obs, generator, 16),
        ONE: lambda: sample(policy, critic, obs, generator),
    }
    times = alternate(plan, sides, cpu=True)
    goal = (Goal("ratio", "<=", 3.0),)
    yield shorter(Row("best of 16, batch 1", "us", 0.0, goals=goal), times, ONE)
