"""Limits on a run's metrics: what a number that passed its limit means, and what helps."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Sign(NamedTuple):
    """A metric whose size tells that training went wrong."""

    metric: str
    meaning: str


SIGNS = {  # keys of `limits`
    "q": Sign(
        "critic/q",
        "the critic's values run away: lower algo.critic_lr or algo.target_rate, set "
        "critic.layer_norm=true, or check the scale of the rewards",
    ),
    "value": Sign(
        "critic/value",
        "the state values run away: lower algo.learn.value_lr, or set "
        "algo.learn.scale_rewards=true",
    ),
    "gradient_norm": Sign(
        "policy/gradient_norm",
        "the policy's gradients explode: lower algo.learn.policy_lr or algo.learn.max_norm",
    ),
    "first_ratio_error": Sign(
        "policy/first_ratio_error",
        "the ratio is not 1 before the first step, so acting and learning disagree about the "
        "policy's density: the policy's settings were changed, or its code has a fault",
    ),
    "kl": Sign(
        "policy/kl",
        "the policy leaps away from the one that acted: lower algo.learn.policy_lr, "
        "algo.learn.clip or algo.learn.kl_stop",
    ),
    "saturated": Sign(
        "rollout/saturated",
        "nearly all actions lie on their bounds: lower the noise (algo.noise.std_max, policy.std) "
        "or the policy's learning rate, or anchor it to its base",
    ),
}


UNBOUND = (
    "policy.prediction=eps divides by the path's A, which is near 0 where a chain starts: set "
    "policy.clip_a=true; else "
)


def diagnosis(
    row: Mapping[str, Any], limits: Mapping[str, float | None], policy: Mapping[str, Any]
) -> str | None:
    """What is wrong with a row of metrics, None when every limit is kept.

    policy: its node of the configuration.
    """
    for name, limit in limits.items():
        sign = SIGNS[name]
        value = row.get(sign.metric)
        if limit is not None and value is not None and abs(float(value)) > limit:
            over = f"{float(value):g}, above limits.{name}={limit:g}"
            unbound = policy.get("prediction") == "eps" and not policy.get("clip_a", False)
            cause = UNBOUND if name == "saturated" and unbound else ""
            return f"{sign.metric} is {over}: {cause}{sign.meaning}"
    return None
