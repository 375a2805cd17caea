"""A policy tuned by branches of one noisy denoising step, whoever judges what they come to."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .. import ranks
from ..policies.flow import FlowPolicy, log_normal
from ..policies.nets import clone, lerp_
from ..ranges import Count, NonNegative, Positive, Share
from . import branching, losses
from .anchors import Shown, path_kl
from .losses import Deviation
from .matching import Averaged
from .offpolicy import Scheduled
from .onpolicy import ratio_metrics
from .optim import step
from .pulled import Pulled
from .returns import pessimistic

LOG_RATIO_MAX = 10.0
FORGOTTEN = 0.01  # of the tally of variances, per policy update


class Met(NamedTuple):
    """What a policy step holds fixed over its inner steps."""

    x: Tensor  # [R, T, Da] where the noisy step begins
    after: Tensor  # [R, G, T, Da] where it ends
    which: Tensor  # [R] which step of the chain it is
    std: Tensor  # [R, 1, 1, 1]
    old: Tensor  # [R, G] log density per element under the policy that drew it
    advantage: Tensor  # [R, G]
    worth: Tensor  # [R] mean Q of the branches
    shown: Shown | None = None  # recorded actions that hold the policy


@dataclass(eq=False)
class Branched(Pulled, Scheduled, Averaged):
    """Policy gradients of single denoising steps, by branches that part there.

    At given states a deterministic chain goes to a step k, which alone has noise: x_{k+1} ~ N(its
    mean, std^2 (1 - t_k)^(2 std_power)) for every branch. All branches of a state are completed
    without noise and valued by the smallest Q of the target ensemble, so that what they differ by
    is due to that step. Their advantages among each other (`losses.group_advantage`) weigh the
    step's log density, the mean over the executed elements, in PPO's clipped objective. Values cost
    no step of the environment. R policy_batch, K denoising steps, G branches.

    Args:
        branches: Branches of a state that are completed and compared; at least 2.
        std: Standard deviation of the noise that parts branches, in normalised action units.
        std_power: Power of 1 - t by which that noise falls along the chain; 0 keeps it.
        kicked: Which denoising step is made noisy at a state: uniform, any; window, one of the last
            ones, first only the last; active, drawn by the variance of Q that it made lately.
        window_share: Share of the run in which the window of kicked=window grows to the whole
            chain; without effect otherwise.
        completions: Numbers of denoising steps, below policy.steps, by which every branch is
            completed too, beside the policy's own steps; their advantages add up.
        pool: Branches that are drawn and completed in one step, of which as many as branches says
            are completed in full; null: no pool.
        pool_keeps: Which of a pool go on: ends, the best half and the worst half; best, the best
            alone; without effect unless pool is set.
        antithetic: Whether the noises of branches come in pairs of opposite signs.
        deviation: What advantages are divided by: the standard deviation over the whole batch, or
            over each state alone, which makes all states count alike.
        advantage_clip: Standard deviations at which advantages are cut off in either direction.
        clip: Limit of the ratio of a noisy step's densities, to 1 - clip and 1 + clip; it holds
            from the second of inner_steps on.
        inner_steps: Gradient steps on each set of branches.
        policy_batch: States of a batch that a policy update uses, at most.
        policy_every: Critic updates per policy update.
    """

    anchors = ("base",)
    holds = {"path": ("const", "dual"), "data": ("const", "dual")}

    executed: int | None = None
    _: KW_ONLY
    branches: Count
    std: Positive
    std_power: NonNegative
    kicked: Literal["uniform", "window", "active"]
    window_share: Share
    completions: list[Count]
    pool: Count | None
    pool_keeps: Literal["ends", "best"]
    antithetic: bool
    deviation: Deviation
    advantage_clip: Positive
    clip: Positive
    inner_steps: Count
    policy_batch: Count
    policy_every: Count

    def __post_init__(self) -> None:
        self.hold(self.generator.device)
        self.refuse()
        self.base = clone(self.policy) if self.to_start else None
        device = self.generator.device
        self.window = torch.ones((), device=device)  # the last steps that kicked=window draws from
        self.tally = torch.zeros((2, self.policy.steps), device=device)  # of `branching.active`
        super().__post_init__()

    def refuse(self) -> None:
        """Raises ValueError for words that are unknown and for values that do not go together."""
        steps = self.policy.steps
        if self.kicked not in ("uniform", "window", "active"):
            raise ValueError(f"algo.kicked={self.kicked!r}: choose uniform, window or active")
        if self.pool_keeps not in ("ends", "best"):
            raise ValueError(f"algo.pool_keeps={self.pool_keeps!r}: choose ends or best")
        if self.deviation not in ("batch", "state"):
            raise ValueError(f"algo.deviation={self.deviation!r}: choose batch or state")
        if self.policy.sampler != "euler":
            raise ValueError(
                f"policy.sampler={self.policy.sampler}: a noisy step is one of Euler's, whose "
                "likelihood is known; use policy.sampler=euler"
            )
        if self.branches < 2:
            raise ValueError(f"algo.branches={self.branches}: an advantage needs at least 2")
        for count in self.completions:
            if not 1 <= count < steps or self.completions.count(count) > 1:
                raise ValueError(
                    f"algo.completions={self.completions}: once each, from 1 to below "
                    f"policy.steps={steps}, by which branches are completed anyway"
                )
        self.refuse_counts()

    def refuse_counts(self) -> None:
        """Raises ValueError for numbers of branches that cannot be had."""
        drawn = self.branches if self.pool is None else self.pool
        if drawn < self.branches:
            raise ValueError(
                f"algo.pool={drawn}: fewer than algo.branches={self.branches}, which are taken "
                "from it; set it to as many or more, or to null"
            )
        if self.antithetic and drawn % 2:
            key = "branches" if self.pool is None else "pool"
            raise ValueError(f"algo.{key}={drawn}: pairs need an even number, {drawn + 1} perhaps")
        if self.pool is not None and self.pool_keeps == "ends" and self.branches % 2:
            raise ValueError(
                f"algo.branches={self.branches}: the halves of algo.pool_keeps=ends need an even "
                f"number, {self.branches + 1} perhaps"
            )

    def begin(self) -> float:
        """Sets the window too. Returns how much of the run is over."""
        share = super().begin()
        grown = min(share / self.window_share, 1.0) if self.window_share > 0 else 1.0
        self.window.fill_(max(1, math.ceil(grown * self.policy.steps)))
        return share

    # ---- what a subclass may add -----------------------------------------------------------

    def step_value(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor | None:
        """What stands for the mean of the branches of the points x [R, T, Da] at the times t."""
        return None

    def learn_value(self, obs: Tensor, met: Met) -> dict[str, Tensor]:
        """A step of what `step_value` answers; metrics."""
        return {}

    # ---- the policy's steps ----------------------------------------------------------------

    def update_policy(self, obs: Tensor, shown: Shown | None = None) -> dict[str, Tensor]:
        """Inner steps on one set of branches at states [R, O], and of recorded actions."""
        met, metrics = self.meet(obs)
        met = met._replace(shown=shown)
        metrics |= self.learn_value(obs, met)
        for _ in range(self.inner_steps):
            loss, more = self.policy_loss(obs, met)
            norm = step(self.policy_opt, loss, self.max_norm)
            metrics |= more | {"policy/loss": loss.detach(), "policy/gradient_norm": norm}
            if self.anchoring is not None:
                metrics |= self.anchoring.learn(more)
        if self.anchoring is not None:
            metrics |= self.anchoring.renew(metrics, self.base, self.policy)
        lerp_(self.average, self.policy, self.ema_rate)
        return metrics

    @torch.no_grad()
    def meet(self, obs: Tensor) -> tuple[Met, dict[str, Tensor]]:
        """Branches of a chain at each of the states [R, O], their advantages, and metrics."""
        policy, feat, rows = self.policy, self.policy.features(obs), len(obs)
        which = branching.drawn(self.weights(), losses.row_times(rows, self.generator))
        chain = branching.points(policy, feat, policy.noise(rows, self.generator))
        x = chain[torch.arange(rows, device=which.device), which]
        times = policy.times()
        std = (self.std * (1 - times[which]) ** self.std_power)[:, None, None, None]
        mean, since = self.mean(obs, x, which), times[which + 1]
        after, cheap = self.parted(obs, feat, mean[:, None] + std * self.kicks(rows), since)
        q = [self.worth(obs, feat, after, since, count) for count in (None, *self.completions)]
        self.tell(which, q[0].var(1, correction=0))
        metrics = {
            "critic/q_std": q[0].std(1, correction=0).mean(),
            "policy/step": which.to(std.dtype).mean(),
        }
        if cheap is not None:
            metrics["policy/rank_correlation"] = branching.rank_correlation(cheap, q[0])
        baseline = self.step_value(obs, x, times[which])
        advantage, old = self.compared(q, baseline), self.log_prob(mean, after, std)
        return Met(x, after, which, std, old, advantage, q[0].mean(1)), metrics

    def compared(self, q: list[Tensor], baseline: Tensor | None = None) -> Tensor:
        """Advantages [R, G] of branches, summed over several completions' Q.

        Among each other, or over a baseline [R].
        """
        clip, deviation = self.advantage_clip, self.deviation
        parts = [losses.group_advantage(each, clip, clip, deviation, baseline) for each in q]
        return torch.stack(parts).sum(0)

    def weights(self) -> Tensor:
        """How likely each of the steps is to be the noisy one, [K], in any unit."""
        if self.kicked == "active":
            return branching.active(self.tally)
        steps = self.policy.steps
        ahead = steps - torch.arange(steps, device=self.window.device)  # 1 for the last one
        wide = self.window if self.kicked == "window" else steps
        return (ahead <= wide).float()

    def tell(self, which: Tensor, variance: Tensor) -> None:
        """Remembers the variances [R] of Q that noise in the steps `which` made."""
        fresh = branching.measured(which, variance, self.policy.steps)
        self.tally.mul_(1 - FORGOTTEN).add_(ranks.mean(fresh)[0])

    def kicks(self, rows: int) -> Tensor:
        """Standard normal noise of every branch, [R, M, T, Da]."""
        count = self.branches if self.pool is None else self.pool
        if not self.antithetic:
            return self.policy.noise((rows, count), self.generator)
        half = self.policy.noise((rows, count // 2), self.generator)
        return torch.cat([half, -half], 1)

    def parted(
        self, obs: Tensor, feat: Tensor, after: Tensor, since: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The branches [R, G, T, Da] of those drawn that are compared, and their cheap values."""
        if self.pool is None:
            return after, None
        cheap = self.worth(obs, feat, after, since, 1)
        index = branching.kept(cheap, self.branches, self.pool_keeps == "ends")
        after = after.gather(1, index[..., None, None].expand(-1, -1, *after.shape[2:]))
        return after, cheap.gather(1, index)

    def worth(
        self, obs: Tensor, feat: Tensor, after: Tensor, since: Tensor, steps: int | None = None
    ) -> Tensor:
        """The smallest Q of where branches [R, M, T, Da] end by so many steps, [R, M]."""
        end = branching.completed(self.policy, feat, after, since, steps)
        return pessimistic(self.target(obs[:, None], self.policy.to_action(end)), "min")

    def mean(
        self, obs: Tensor, x: Tensor, which: Tensor, policy: FlowPolicy | None = None
    ) -> Tensor:
        """Where the steps `which` [R] lead from x [R, T, Da] without noise, same shape."""
        policy = self.policy if policy is None else policy
        times = policy.times()
        return policy.step(x, times[which], times[which + 1], policy.features(obs))[0]

    def log_prob(self, mean: Tensor, after: Tensor, std: Tensor) -> Tensor:
        """Mean log density per executed element of branches around mean [R, T, Da], [R, G]."""
        logp = log_normal(after, mean[:, None], std)
        return logp[..., : self.executed, :].mean((-1, -2))

    def policy_loss(self, obs: Tensor, met: Met) -> tuple[Tensor, dict[str, Tensor]]:
        """PPO's objective of the noisy step with what holds the policy, []; and metrics."""
        mean = self.mean(obs, met.x, met.which)
        log_ratio = self.log_prob(mean, met.after, met.std) - met.old
        loss = losses.clipped(log_ratio, met.advantage, self.clip, LOG_RATIO_MAX).mean()
        metrics = ratio_metrics(log_ratio.detach(), self.clip, LOG_RATIO_MAX)
        part = self.anchor("path")
        if part is not None:
            along = self.path(obs, mean, met)
            metrics["policy/path_kl"] = along.detach()
            loss = loss + part.coef * along
        cloning, more = self.to_data(met.shown, self.policy)
        return loss + cloning, metrics | more

    def path(self, obs: Tensor, mean: Tensor, met: Met) -> Tensor:
        """Divergence [] of the noisy steps from those of the run's start, in nats per step.

        Summed over the executed steps' elements.
        """
        assert self.base is not None
        with torch.no_grad():
            there = self.mean(obs, met.x, met.which, self.base)
        gap = path_kl(mean, there, met.std[:, 0])[:, : self.executed]
        return gap.sum((-1, -2)).mean()
