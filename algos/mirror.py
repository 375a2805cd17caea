"""Mirror descent by matching: samples of an old policy weighed by their values (DPMD, QVPO)."""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.candidates import candidate_noise, choose
from ..policies.flow import FlowPolicy
from ..policies.nets import clone, lerp_
from ..ranges import Count, Natural, NonNegative, Positive, Share
from .anchors import Shown, unlike
from .losses import matching_times
from .matching import Averaged, BestOf
from .pulled import Pulled
from .returns import dual_step, pessimistic

Weights = Literal["softmax", "linear", "square", "positive"]
REACHED = 0.6  # share of log K, the largest divergence of weights on K actions, that is asked for
HALVINGS = 40


class Met(NamedTuple):
    """What a policy step is matched to; J actions of a state."""

    action: Tensor  # [R, J, T, Da]
    weight: Tensor  # [R, J]
    noise: Tensor  # [R, J, T, Da]
    t: Tensor  # [R, J]


@dataclass(eq=False)
class Mirror(Pulled, BestOf, Averaged):
    """Policy mirror descent with weighted matching of own samples.

    At states of the replay K actions of the old policy, with noise and inside the box, are weighed
    by Q, and the policy is matched to them in its own form: L = mean w min(|v - y|^2, cap). With
    `softmax` weights K softmax(Q / T) its aim is pi(a|s) ~ pi_old(a|s) exp(Q / T) (DPMD,
    arXiv:2502.00361; FPMD, arXiv:2507.23675, with a flow of one step, which is then a policy's
    mean: it is off its law by that law's variance, W2 squared, and explores by explore_noise
    alone). `linear` and `square` are K max((Q - nu) / T, 0)^p, p = 1 and 2, with nu such that they
    average 1 (GeMPO, arXiv:2603.10250). `positive` is max(Q - mean_K Q, 0) in units of its mean
    over the batch (QVPO, arXiv:2405.16173, whose entropy term the uniform actions are), without a
    temperature.

    Weights on K actions are at most log K nats from uniform ones: a target_kl above 0.6 log K is
    refused, near which T is a small part of Q's deviation and one action weighs all; and so is a
    target_ess below that of K^0.4 equal ones, which are as many nats from uniform. Errors count
    the executed steps of a plan: Q tells nothing about the others.

    The TD target is the smaller of the target critics at an action of the averaged policy. Actions
    are those of the noisy chain with the share `policy.eta` of DDPM's noise. B batch, R
    policy_batch, K particles, T chunk, Da action dimension.

    Args:
        particles: Actions that the old policy draws at each state, to be weighed by Q; at least 2.
        weights: How Q becomes weights: softmax of Q / T, linear or square (a truncated power of Q /
            T), or positive, the advantages above 0.
        temperature: Temperature T of the weights, in units of Q, its first value with a target:
            lower is greedier; null with weights=positive.
        target_kl: KL divergence of the weights from uniform ones, in nats, that temperature is
            adapted to; at most 0.6 log(particles); null keeps it.
        target_ess: Effective number of actions as a share of particles, (sum w)^2 / (K sum w^2),
            that temperature is adapted to instead (arXiv:2603.17685); at least particles^-0.6.
        dual_rate: Step of the temperature's logarithm towards target_kl or target_ess, per policy
            update and unit of log error; without effect when both are null.
        join: How critics join to the value that weighs an action: min, the smallest, or mean.
        old_every: Updates after which the old policy, whose actions are weighed, is replaced by the
            current one; 1: it always is the current one.
        sample_noise: Standard deviation of the Gaussian noise added to actions before they are
            weighed, in action units (the box is -1 to 1).
        kept: Actions per state, the best of particles, that weights=positive matches; null: all.
        uniform: Uniformly random actions per state that are matched besides, against collapse; 0:
            none.
        uniform_coef: Weight of each uniform action, as a share of the summed weights of its state's
            other actions.
        cap: Squared matching error per action element at which it is cut off and gives no gradient;
            null: nowhere.
        policy_batch: States of a batch that a policy update uses, at most.
        policy_every: Critic updates per policy update.
        act_candidates: Samples of the policy per exploring action, of which the one with the
            highest Q acts; 1: no choice.
        deploy_candidates: Samples of the averaged policy per deployed action, of which the one with
            the highest Q acts; 1: no choice.
        target_candidates: Samples of the averaged policy in the TD target, of which the one with
            the highest Q counts; 1: no choice.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
    """

    pure = ("backup", "policy_loss", "pulls_loss")
    anchors = ("base",)
    holds = {"velocity": ("const", "dual"), "data": ("const", "dual")}
    noisy_steps = True  # what is deployed has noise in its transitions, where policy.eta > 0

    executed: int | None = None
    _: KW_ONLY
    particles: Count
    weights: Weights
    temperature: Positive | None
    target_kl: Positive | None
    target_ess: Share | None
    dual_rate: NonNegative
    join: Literal["min", "mean"]
    old_every: Count
    sample_noise: NonNegative
    kept: Count | None
    uniform: Natural
    uniform_coef: NonNegative
    cap: Positive | None
    policy_batch: Count
    policy_every: Count
    act_candidates: Count
    target_candidates: Count
    deploy_temperature: float = field(default=0.0, init=False)
    explore_noise: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        targets = {"target_kl": self.target_kl, "target_ess": self.target_ess}
        targets = {key: value for key, value in targets.items() if value is not None}
        _refuse(self.particles, self.weights, self.temperature, targets, self.join, self.kept)
        self.hold(self.generator.device)
        self.base = clone(self.policy) if self.to_start else None
        self.old = clone(self.policy) if self.old_every > 1 else None
        first = 1.0 if self.temperature is None else self.temperature
        self.log_inverse = -torch.tensor(first, device=self.generator.device).log()  # of T

    @property
    def learned(self) -> dict[str, Any]:
        """What belongs to the networks: the temperature, where it follows a target, and pulls."""
        follows = self.target_kl is not None or self.target_ess is not None
        return super().learned | ({"log_inverse": "temperature"} if follows else {})

    # ------------------------------------------------------------------ acting
    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The chosen one of act_candidates samples, with exploration noise, [N, T, Da]."""
        action = self.sampled(self.policy, obs, self.act_candidates)
        return draw.jittered(choose(self.critic, obs, action), self.explore_noise, self.generator)

    @torch.no_grad()
    def sampled(self, policy: FlowPolicy, obs: Tensor, count: int) -> Tensor:
        """Actions of the noisy chain, [N, count, T, Da]."""
        noise = candidate_noise(policy, len(obs), count, self.generator)
        return policy.drawn(obs, noise, self.generator, policy.eta)

    # ---------------------------------------------------------------- learning
    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and, every `policy_every`, one policy step; metrics are 0-d."""
        next_action = self.sampled(self.average, batch.next_obs, self.target_candidates)
        next_action = choose(self.critic, batch.next_obs, next_action)
        loss, metrics = self.backup(batch, next_action)
        self.learn_critic(loss)
        if self.updates % self.policy_every == 0:
            shown = self.shown(self.policy, batch, self.policy_batch, self.generator)
            metrics |= self.update_policy(batch.obs[: self.policy_batch], shown)
        if self.old is not None and self.updates % self.old_every == 0:
            lerp_(self.old, self.policy, 1.0)
        return metrics

    def update_policy(self, obs: Tensor, shown: Shown | None = None) -> dict[str, Tensor]:
        """One step of the policy at states [R, O], and one of the temperature and of pulls."""
        met, metrics = self.meet(obs)
        loss = self.policy_loss(obs, met)
        if self.anchoring is not None:
            pull, more = self.pulls_loss(obs, met, shown)
            loss = loss + pull
            metrics |= more
        self.learn_policy(loss)
        if self.anchoring is not None:
            metrics |= self.anchoring.learn(metrics)
            metrics |= self.anchoring.renew(metrics, self.base, self.policy)
        if self.target_kl is not None:
            dual_step(self.log_inverse, metrics["policy/kl"], self.target_kl, self.dual_rate)
        if self.target_ess is not None:  # its inverse grows with 1 / T, as the divergence does
            inverse = 1 / metrics["policy/ess"]
            dual_step(self.log_inverse, inverse, 1 / self.target_ess, self.dual_rate)
        return metrics | {"policy/loss": loss.detach()}

    def T(self) -> Tensor:
        """The temperature in units of Q, []."""
        return (-self.log_inverse).exp()

    @torch.no_grad()
    def meet(self, obs: Tensor) -> tuple[Met, dict[str, Tensor]]:
        """What the policy is matched to at states [R, O], and metrics."""
        source = self.policy if self.old is None else self.old
        action = self.sampled(source, obs, self.particles)
        action = draw.jittered(action, self.sample_noise, self.generator)
        q = pessimistic(self.critic(obs[:, None], action), self.join)
        T = self.T()
        weight = weigh(q, T, self.weights)
        metrics = {
            "policy/kl": divergence(weight).mean(),
            "policy/ess": effective(weight).mean(),
            "policy/spread": action[..., : self.executed, :].std(1, correction=0).mean(),
            "critic/q_std": q.std(1, correction=0).mean(),
        }
        if self.weights != "positive":
            metrics["policy/temperature"] = T
        if self.kept is not None:
            weight, best = weight.topk(self.kept, 1)
            action = action[torch.arange(len(obs), device=obs.device)[:, None], best]
        if self.weights == "positive":
            weight = weight / weight.mean().clamp_min(1e-8)
        action, weight = self.spread_out(action, weight)
        noise = self.policy.noise(tuple(weight.shape), self.generator)
        t = matching_times(self.policy.path, weight.numel(), self.generator).view(weight.shape)
        return Met(action, weight, noise, t), metrics

    def spread_out(self, action: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The actions of every state with uniform ones beside, and the weights."""
        if self.uniform == 0:
            return action, weight
        shape = (len(action), self.uniform, *action.shape[2:])
        drawn = torch.rand(shape, generator=self.generator, device=action.device)
        share = (self.uniform_coef * weight.sum(1, keepdim=True)).expand(-1, self.uniform)
        return torch.cat([action, 2 * drawn - 1], 1), torch.cat([weight, share], 1)

    def policy_loss(self, obs: Tensor, met: Met) -> Tensor:
        """Weighted matching, []."""
        policy = self.policy
        error = policy.match_errors(
            obs[:, None], met.action, met.noise, met.t, space=policy.prediction
        )[..., : self.executed, :]
        error = error if self.cap is None else error.clamp(max=self.cap)
        return (met.weight * error.mean((-1, -2))).mean()

    def pulls_loss(
        self, obs: Tensor, met: Met, shown: Shown | None
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The pulls where the policy is matched, [], in its own form, and of recorded actions."""
        loss, metrics = self.to_data(shown, self.policy)
        part = self.anchor("velocity")
        if part is None:
            return loss, metrics
        gap = unlike(self.policy, self.base, obs, met.action, met.noise, met.t)
        drift = gap[..., : self.executed, :].mean()
        return loss + part.coef * drift, {**metrics, "policy/drift": drift.detach()}


def weigh(q: Tensor, T: Tensor, kind: Weights) -> Tensor:
    """Weights of K actions of a state by their values, q [R, K] -> [R, K]; T [] in units of q.

    Those of "softmax", "linear" and "square" average 1 over K; "positive" has q's own units.
    """
    if kind == "positive":
        return (q - q.mean(1, keepdim=True)).clamp_min(0.0)
    if kind == "softmax":
        return q.shape[1] * (q / T).softmax(1)
    return q.shape[1] * _on_simplex(q / T, 1 if kind == "linear" else 2)


def _on_simplex(z: Tensor, power: int) -> Tensor:
    """max(z - nu, 0)^power with nu such that each row [R, K] sums to 1, by bisection.

    Power 1 is the Euclidean projection on the simplex (arXiv:1602.02068). The largest element alone
    gives 1 at nu = max - 1 and nothing at nu = max.
    """
    top = z.amax(1, keepdim=True)
    low, high = top - 1, top
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        heavy = (z - middle).clamp_min(0.0).pow(power).sum(1, keepdim=True) > 1
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    mass = (z - low).clamp_min(0.0).pow(power)
    return mass / mass.sum(1, keepdim=True)


def divergence(weight: Tensor) -> Tensor:
    """KL of weights [R, K], as shares of their sum, from uniform ones in nats, [R]."""
    share = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    return math.log(weight.shape[1]) - torch.special.entr(share).sum(1)


def effective(weight: Tensor) -> Tensor:
    """Effective sample size of weights [R, K] as a share of K, 1/K to 1 (0 of no weight), [R]."""
    square = weight.square().mean(1).clamp_min(1e-12)
    return weight.mean(1).square() / square


def _refuse(
    particles: int,
    weights: str,
    temperature: float | None,
    targets: dict[str, float],
    join: str,
    kept: int | None,
) -> None:
    """Raises ValueError for words that are unknown and for values that do not go together."""
    if weights not in ("softmax", "linear", "square", "positive"):
        raise ValueError(f"algo.weights={weights!r}: choose softmax, linear, square or positive")
    if join not in ("min", "mean"):
        raise ValueError(f"algo.join={join!r}: choose min or mean")
    if particles < 2:
        raise ValueError(f"algo.particles={particles}: weights among actions need at least 2")
    if weights == "positive":
        for key, value in {"temperature": temperature, **targets}.items():
            if value is not None:
                raise ValueError(
                    f"algo.{key}={value:g}: algo.weights=positive has no temperature; set "
                    f"algo.{key}=null"
                )
        if kept is not None and not 1 <= kept <= particles:
            raise ValueError(f"algo.kept={kept}: of algo.particles={particles}, at least 1")
        return
    if kept is not None:
        raise ValueError(
            f"algo.kept={kept} with algo.weights={weights}: without the other actions the weights "
            "aim at another density; set algo.kept=null, or algo.weights=positive"
        )
    if temperature is None or not temperature > 0:
        said = "null" if temperature is None else f"{temperature:g}"
        raise ValueError(f"algo.temperature={said} with algo.weights={weights}: above 0 is needed")
    _refuse_targets(particles, targets)


def _refuse_targets(particles: int, targets: dict[str, float]) -> None:
    """Raises ValueError for two targets of one temperature, and for one out of reach."""
    if len(targets) > 1:
        both = " ".join(f"algo.{key}={value:g}" for key, value in targets.items())
        raise ValueError(f"{both}: one temperature follows one target; set the other to null")
    kl, ess = targets.get("target_kl"), targets.get("target_ess")
    most = REACHED * math.log(particles)
    if kl is not None and not 0 < kl <= most:
        raise ValueError(
            f"algo.target_kl={kl:g} with algo.particles={particles}: weights on so few "
            f"actions reach {most:.2f} (0.6 log K) before one of them weighs all; set "
            f"algo.target_kl above 0 and at most {most:.2f}, or "
            f"algo.particles={math.ceil(math.exp(max(kl, 0.1) / REACHED))}"
        )
    least = math.exp(-most)
    if ess is not None and not least <= ess < 1:
        raise ValueError(
            f"algo.target_ess={ess:g} with algo.particles={particles}: a share from {least:.2f} "
            "(K^-0.6), below which one action weighs all, to below 1, where all weigh alike"
        )
