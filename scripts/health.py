"""Signs that a policy or a critic learns nothing although no number broke: told, not an end.

Looked at with every row of metrics behind which there are MIN updates. A sign has to hold for
several looks in a row: a spike, a warm-up or a control that is all or nothing is none.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rheo import ranks
from rheo.envs.batch import Batch, Rollout
from rheo.envs.sources import Replay
from rheo.policies.critics import QEnsemble

from .breaks import weights
from .config.top import EVAL_SEED
from .store.state import optimizers

log = logging.getLogger("rheo")
MIN = 10  # updates between looks
ROWS = 64  # states in which the policy is asked
BOUND = 1 - 1e-6  # an action beyond it lies on its bound
SATURATED, BLIND, OVER = 0.98, 0.02, 3.0
SMOOTH = 0.2  # weight of a look in the mean of what a critic explains


class Sign(NamedTuple):
    """What is told of a sign, and after how many looks in a row."""

    looks: int
    meaning: str


SIGNS = {
    "saturated": Sign(
        3,
        "all actions of the policy lie on their bounds, where its gradients vanish: lower its "
        "learning rate, or start anew with another seed",
    ),
    "still": Sign(
        3,
        "weights do not move although their optimiser steps: their gradients are 0, or the "
        "learning rate is too small for their precision",
    ),
    "constant": Sign(5, "a loss is the same number again and again: it tells nothing to learn"),
    "blind": Sign(
        20,
        "the critic explains nothing of what its targets are: check the rewards' scale, or lower "
        "its learning rate",
    ),
    "beyond": Sign(
        3,
        "the critic's values are beyond what rewards can sum to, so they feed on themselves: "
        "lower algo.critic_lr or algo.target_rate, or set critic.layer_norm=true",
    ),
}


class Health:
    """Looks at an algorithm with every row, and tells each sign once (`health/NAME` in rows)."""

    def __init__(self, algo: Any, source: Any) -> None:
        self.algo = algo
        self.acts = isinstance(getattr(source, "replay", source), Replay)
        self.seen: dict[str, Any] = {"streaks": {}, "told": [], "sums": {}, "steps": {}}
        self.seen |= {"losses": {}, "reward": 0.0, "explained": 1.0}

    def state(self) -> dict[str, Any]:
        """What a run that is resumed has to know."""
        return self.seen

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from what `state` returned; None: an older checkpoint."""
        self.seen |= state or {}

    @torch.no_grad()
    def look(self, batch: Any, row: Mapping[str, Any]) -> dict[str, float]:
        """The signs that hold now and have held for long enough, as metrics.

        batch: the last one; row: of the metrics.
        """
        if batch is None or ranks.size() > 1:
            return {}
        taken = steps_of(self.algo)
        if max((taken[k] - self.seen["steps"].get(k, 0) for k in taken), default=0) < MIN:
            return {}
        signs = self.moving(taken, row) | self.judged(batch, row)
        if self.algo.policy is not None and not isinstance(batch, Rollout):
            signs["saturated"] = self.saturated(batch)
        found = {}
        for name, holds in signs.items():
            streak = self.seen["streaks"].get(name, 0) + 1 if holds else 0
            self.seen["streaks"][name] = streak
            if streak >= SIGNS[name].looks:
                found[f"health/{name}"] = 1.0
                self.tell(name, holds)
        return found

    def tell(self, name: str, what: Any) -> None:
        """Says a sign once."""
        if name not in self.seen["told"]:
            self.seen["told"].append(name)
            log.warning("%s: %s (health/%s in metrics.jsonl)", what, SIGNS[name].meaning, name)

    def moving(self, taken: dict[str, float], row: Mapping[str, Any]) -> dict[str, str]:
        """Optimisers that stepped and moved nothing; losses that stay what they are."""
        before, self.seen["steps"] = self.seen["steps"], taken
        stepped = [name for name in taken if taken[name] - before.get(name, 0) >= MIN]
        sums = {name: norms(group) for name, group in weights(self.algo).items()}
        same = [name for name in stepped if sums.get(name) == self.seen["sums"].get(name)]
        self.seen["sums"] = sums
        losses = {k: float(v) for k, v in row.items() if k.endswith("loss") and k[:4] != "val/"}
        equal = [k for k, v in losses.items() if v != 0 and v == self.seen["losses"].get(k)]
        self.seen["losses"] = losses
        learns = len(stepped) == len(taken)  # else a row holds losses of earlier updates
        return {"still": ", ".join(same), "constant": ", ".join(equal) if learns else ""}

    def judged(self, batch: Any, row: Mapping[str, Any]) -> dict[str, str]:
        """Whether the critic tells states apart, and whether its values can be."""
        explained, signs = row.get("critic/explained_variance"), {}
        if explained is not None and row.get("rollout/tells", 1.0):
            signs["blind"] = self.blind(float(explained))
        critic = vars(self.algo).get("critic")
        if type(critic) is not QEnsemble or not isinstance(batch, Batch):
            return signs
        q = critic(batch.obs, batch.action).double()
        tells = any(float(each.var()) > 0 for each in (batch.reward, batch.discount))
        if "critic/loss" in row and tells:
            error = 2 * float(row["critic/loss"]) / len(q)
            spread = float(q.mean(0).var())
            signs["blind"] = self.blind(spread / (spread + error) if spread + error else 1.0)
        signs["beyond"] = self.beyond(batch, row, float(q.mean()))
        return signs

    def blind(self, explained: float) -> str:
        """What is told of a share of the targets' variance, by its mean over the last looks."""
        mean = (1 - SMOOTH) * self.seen["explained"] + SMOOTH * max(explained, -1.0)
        self.seen["explained"] = mean
        return f"critic explains {mean:.1%} of its targets" if mean < BLIND else ""

    def beyond(self, batch: Batch, row: Mapping[str, Any], q: float) -> str:
        """What is told of values that no rewards could sum to."""
        self.seen["reward"] = max(self.seen["reward"], float(batch.reward.abs().max()))
        discount = float(batch.discount.max())
        if discount >= 1:
            return ""
        bonus = float(row.get("policy/temperature", 0.0)) * float(row.get("policy/entropy", 0.0))
        most = (self.seen["reward"] + abs(bonus)) / (1 - discount)
        if not math.isfinite(q) or abs(q) <= OVER * most:
            return ""
        return f"critic/q is {q:.3g}, and rewards sum to {most:.3g} at most"

    def saturated(self, batch: Any) -> str:
        """What is told of a policy whose deployed actions lie on their bounds."""
        if not self.acts and share(batch.action) > 0.5:  # the data are so
            return ""
        device = self.algo.generator.device
        noise = torch.Generator(device).manual_seed(EVAL_SEED)
        action = self.algo.deploy(batch.obs[:ROWS], noise)[:, : self.algo.executed]
        at = share(action)
        return f"policy: {at:.0%} of its actions on their bounds" if at > SATURATED else ""


def share(action: Tensor) -> float:
    """The share of actions that lie on a bound."""
    return float((action.abs() >= BOUND).double().mean())


def norms(group: list[Tensor]) -> list[float]:
    """A number for each tensor that changes when it does."""
    return torch.stack([each.double().norm() for each in group]).tolist()


def steps_of(algo: Any) -> dict[str, float]:
    """How often every optimiser of an algorithm has stepped."""
    return {
        name: max((float(one["step"]) for one in each.state.values() if "step" in one), default=0.0)
        for name, each in optimizers(algo)
    }
