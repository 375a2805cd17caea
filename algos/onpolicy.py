"""Learning on policy: a rollout, its advantages, and epochs of minibatches over it."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ranks
from ..envs.batch import Choice, Rollout
from ..ranges import Count, Natural, NonNegative, Positive, Share
from .contract import Algorithm
from .gae import RewardScale, gae, tells
from .losses import clipped
from .optim import adam, anneal, step

log = logging.getLogger("rheo")


class Rows(NamedTuple):
    """Decisions of a rollout, B of them in any order."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B, T, Da]
    kept: dict[str, Tensor]  # [B, ...]
    advantage: Tensor  # [B] normalised over the rollout
    goal: Tensor  # [B] of the state value

    def take(self, index: Tensor) -> "Rows":
        """The rows of an index [M]."""
        kept = {name: value[index] for name, value in self.kept.items()}
        obs, action = self.obs[index], self.action[index]
        return Rows(obs, action, kept, self.advantage[index], self.goal[index])


@dataclass(eq=False, kw_only=True)
class Learning:
    """How a rollout is learned from; the same for every algorithm on policy.

    Rollouts that tell something are those of `gae.tells`. From others only the value ever learns,
    which is the warm-up of a sparse task: until its first reward.

    Args:
        epochs: Passes over each rollout, at most; kl_stop may end them early.
        minibatch: Samples per gradient step, at most: decisions, or single denoising steps in DPPO.
        gae_lambda: Lambda of generalised advantage estimation, per decision: 0 trusts the value
            alone, 1 the rewards of the whole rollout.
        policy_lr: Adam learning rate of the policy at the start of the run.
        value_lr: Adam learning rate of the state value at the start of the run.
        lr_floor: Share of both learning rates that is left at the end of the run, reached along a
            cosine; 1 keeps them constant.
        max_norm: Largest gradient norm of a policy step; a longer gradient is scaled down to it.
        value_warmup: Rollouts from which only the value learns before the policy begins, not
            counting those whose rewards tell nothing; 0: none.
        kl_stop: KL divergence from the policy that acted, in an epoch's last minibatch, above which
            the remaining epochs are skipped.
        scale_rewards: Whether rewards are divided by the running standard deviation of the
            discounted return.
        reward_clip: Limit of a scaled reward in either direction; without effect unless
            scale_rewards is set.
        clip: PPO's clip: probability ratios count only between 1 - clip and 1 + clip. In DPPO that
            of the last denoising step.
        ratio_limit: Limit of the log ratio in either direction before the exponential, against
            overflow only.
    """

    epochs: Count
    minibatch: Count
    gae_lambda: Share
    policy_lr: Positive
    value_lr: Positive
    lr_floor: Share
    max_norm: Positive
    value_warmup: Natural
    kl_stop: NonNegative
    scale_rewards: bool
    reward_clip: Positive
    clip: Positive
    ratio_limit: Positive


@dataclass(eq=False)
class OnPolicy(Algorithm):
    """The loop that PPO, ReinFlow, DPPO and advantage weighted matching share.

    A subclass says how it acts (`act` returns a Choice with what a ratio needs), what the policy
    minimises (`policy_loss`) and which parameters learn (`tuned`). The value learns by regression
    on advantage + value of the rollout. Advantages are normalised, so a rollout whose rewards tell
    nothing would teach the policy the noise of its value at full strength: there the policy rests
    (`rollout/tells` is 0, `policy/kl` 0), and the value learns. Not so where every step was worth
    the same and more than 0 in a run that has learned from others: that is a task of survival, in
    which the value knows by then where ends are near. The first minibatch meets the policy that
    acted: its ratio is 1, and `policy/first_ratio_error` tells by how much it is not.

    executed: how many of the steps of a plan are executed, the first ones; None: all. Whatever a
    loss weighs, ratios and clips, matching errors, entropies, anchors, is of those steps alone. The
    rest of a plan has no part in its reward, and would only add its noise to both (as in the public
    code of arXiv:2409.00588, which cuts its log densities alike).
    """

    pure = ("policy_loss", "value_loss")
    learned = {"scale": None}
    samples = 1  # policy samples per decision; more where every denoising step is one

    policy: Any
    generator: torch.Generator
    run_updates: int
    value: Any  # a state value, obs [B, O] -> [B]
    learn: Learning

    def __post_init__(self) -> None:
        device = self.generator.device
        self.value.to(device)
        self.frames = 0
        self.rollouts = 0  # of those that tell something
        self.said = False  # that there was one without
        self.policy_opt = adam(self.tuned(), self.learn.policy_lr)
        self.value_opt = adam(self.value.parameters(), self.learn.value_lr)
        self.scale = RewardScale(self.learn.reward_clip, device)

    # ---- what an algorithm says ------------------------------------------------------------

    def tuned(self) -> Iterable[nn.Parameter]:
        """Parameters that the policy's optimiser moves."""
        return self.policy.parameters()

    def act(self, obs: Tensor) -> Choice:
        """Chunks [N, T, Da] for obs [N, O], and what `policy_loss` needs of them."""
        raise NotImplementedError

    def draw(self, rows: Rows) -> tuple[Tensor, ...]:
        """Randomness of one `policy_loss`."""
        return ()

    def policy_loss(
        self, rows: Rows, which: Tensor, *draws: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [] of samples `which` [B] of decisions, and metrics; see `surrogate`."""
        raise NotImplementedError

    # ---- the loop --------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """How much of the run is over, in [0, 1]."""
        return min(self.frames / max(self.run_updates, 1), 1.0)

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Epochs over one rollout; metrics are 0-d tensors."""
        learn = self.learn
        anneal(self.policy_opt, learn.policy_lr, self.share, learn.lr_floor)
        anneal(self.value_opt, learn.value_lr, self.share, learn.lr_floor)
        self.frames += ranks.total(int(rollout.frames.sum()))
        told = tells(rollout.reward, rollout.discount, rollout.frames, rollout.valid)
        if not told and self.rollouts > 0:  # of survival, by a value that has seen ends before
            told = not ranks.largest(int(((rollout.reward <= 0) & rollout.valid).any()))
        self.rollouts += told
        rows, metrics = self.judge(rollout)
        metrics["rollout/tells"] = torch.tensor(float(told))
        self.say(told, rollout)
        found: dict[str, list[Tensor]] = {}
        resting = not told or self.rollouts <= learn.value_warmup
        for left in range(learn.epochs, 0, -1):
            for index in self.minibatches(len(rows.obs)):
                part, which = rows.take(index // self.samples), index % self.samples
                more = self.learn_from(part, which, resting)
                for name, number in more.items():
                    found.setdefault(name, []).append(number)
            if left > 1 and found.get("policy/kl") and self.leapt(found["policy/kl"][-1]):
                break
        if "policy/ratio_error" in found:
            metrics["policy/first_ratio_error"] = found.pop("policy/ratio_error")[0]
        metrics["policy/minibatches"] = torch.tensor(len(found.get("policy/kl", [])))
        metrics["policy/kl"] = torch.zeros(())  # unless it learned
        return metrics | {name: torch.stack(values).mean() for name, values in found.items()}

    def learn_from(self, rows: Rows, which: Tensor, resting: bool) -> dict[str, Tensor]:
        """One step of the value on a minibatch and, unless it rests, one of the policy.

        Asks the device nothing, and decides by nothing else that changes on the host.
        """
        loss = self.value_loss(rows)
        step(self.value_opt, loss)
        metrics = {"critic/loss": loss.detach()}
        return metrics if resting else metrics | self.policy_step(rows, which)

    def leapt(self, kl: Tensor) -> bool:
        """Whether an epoch ended too far from the policy that acted, by the KL [] of all ranks."""
        return bool(ranks.mean(kl)[0] > self.learn.kl_stop)

    def say(self, told: bool, rollout: Rollout) -> None:
        """Says once that a rollout told nothing."""
        if not told and not self.said:
            log.warning(
                "rollout of %d decisions: %s, so the policy rests and the value alone learns; "
                "rollout/tells counts the others",
                int(rollout.valid.sum()),
                "every step was worth the same" if rollout.reward.any() else "no reward",
            )
            self.said = True

    def minibatches(self, rows: int) -> Iterable[Tensor]:
        """Indices of samples in random order, about equal parts of at most `minibatch`.

        As many on all ranks: one with fewer valid rows than another takes some twice.
        """
        own = rows * self.samples
        count, device = ranks.largest(own), self.generator.device
        order = torch.randperm(own, generator=self.generator, device=device)
        if count > own:
            order = order[torch.arange(count, device=device) % own]
        return order.chunk(-(-count // self.learn.minibatch))

    def policy_step(self, rows: Rows, which: Tensor) -> dict[str, Tensor]:
        """One step of the policy."""
        loss, metrics = self.policy_loss(rows, which, *self.draw(rows))
        norm = step(self.policy_opt, loss, self.learn.max_norm)
        return metrics | {"policy/loss": loss.detach(), "policy/gradient_norm": norm}

    @torch.no_grad()
    def judge(self, rollout: Rollout) -> tuple[Rows, dict[str, Tensor]]:
        """Advantages and value goals of a rollout's valid decisions, as S N rows."""
        learn, valid = self.learn, rollout.valid
        index = repeated(valid)

        def picked(column: Tensor) -> Tensor:
            return column.flatten(0, 1).index_select(0, index)

        reward = rollout.reward
        if learn.scale_rewards:
            reward = self.scale(reward, rollout.discount, rollout.boundary | ~valid)
        value, after = self.value(rollout.obs), self.value(rollout.next_obs)
        advantage = gae(
            reward, rollout.discount, value, after, rollout.boundary, valid, learn.gae_lambda
        )
        goal, value = picked(advantage + value), picked(value)
        spread = (goal - value).var(correction=0) / goal.var(correction=0).clamp_min(1e-8)
        advantage, action = picked(advantage), picked(rollout.action)
        mean, std = ranks.spread(advantage)
        metrics = {
            "critic/explained_variance": 1 - spread,
            "critic/value": value.mean(),
            "rollout/advantage_std": std,
            "rollout/reward_scale": self.scale.std if learn.scale_rewards else torch.ones(()),
            "rollout/saturated": (action[:, : self.executed].abs() >= 1).float().mean(),
        }
        advantage = (advantage - mean) / (std + 1e-8)
        kept = {name: picked(column) for name, column in rollout.kept.items()}
        return Rows(picked(rollout.obs), action, kept, advantage, goal), metrics

    def value_loss(self, rows: Rows) -> Tensor:
        """Half the mean squared error of the value, []."""
        return 0.5 * (self.value(rows.obs) - rows.goal).square().mean()

    def surrogate(
        self, log_ratio: Tensor, advantage: Tensor, clip: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's clipped objective to minimise (`losses.clipped`), [], and its health."""
        limit = self.learn.ratio_limit
        loss = clipped(log_ratio, advantage, clip, limit).mean()
        return loss, ratio_metrics(log_ratio.detach(), clip, limit)


def repeated(valid: Tensor) -> Tensor:
    """Which rows of a rollout to learn from, [S N] for valid [S, N]: as many whatever broke.

    The valid ones in order, and in place of each broken one a valid one again, from the first on.
    So shapes do not depend on values: nothing is asked of a device, compiled code stays, and
    processes that learn together make as many steps. Where all are valid it is all of them.
    """
    flat = valid.flatten()
    order = (~flat).to(torch.uint8).argsort(stable=True)
    return order[torch.arange(len(flat), device=flat.device) % flat.sum().clamp_min(1)]


def ratio_metrics(
    log_ratio: Tensor, clip: Tensor | float, limit: float = math.inf
) -> dict[str, Tensor]:
    """Health of a ratio: KL by (r - 1) - log r (Schulman's k3), share clipped, largest error."""
    ratio = log_ratio.clamp(-limit, limit).exp()
    error = (ratio - 1).abs()
    return {
        "policy/kl": (ratio - 1 - log_ratio).mean(),
        "policy/clip_fraction": (error > clip).to(ratio.dtype).mean(),
        "policy/ratio_error": error.max(),
    }
