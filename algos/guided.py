"""Noise predictions moved by the gradient of Q where the action is noisy: QSM and DAC."""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from ..envs.batch import Batch
from ..policies import draw
from ..policies.candidates import candidate_noise
from ..policies.flow import FlowPolicy
from ..policies.nets import lerp_
from ..ranges import Count, NonNegative, Positive
from .losses import Draws, matching_times
from .matching import Matching
from .optim import anneal, step
from .returns import Join, constrain, pessimistic

TINY = 1e-6


@dataclass(eq=False)
class Guided(Matching):
    """Q-score matching (arXiv:2312.11752) and diffusion actor-critic (arXiv:2405.20555).

    Neither samples its chain to learn from: at x = A a + B eps, a given action a, the noise
    prediction e meets

    rule "score" (QSM): |e + B dQ(s, x) / (T mean|dQ|)|^2, so -e / B, the score, is dQ / T, with T,
    `temperature`, in units of the mean size of the gradient's elements over the batch;

    rule "shift" (DAC): eta |e - eps|^2 + B <dQ(s, x) / mean|Q|, e>, whose minimum is e = E[eps|x] -
    B dQ / (2 eta mean|Q|): cloning, shifted.

    Q is the mean of the target critics. Neither learns the density exp(Q / T), or that of the data
    tilted by it: dQ stands for the gradient of the log density of x at every noise, as if noise did
    not smooth it. Towards N(.3, .25) QSM draws a variance of .07, and DAC shifts a Gaussian by four
    to eight times what its eta says. By the deterministic map it is .01; so every action is one of
    the noisy chain (`FlowPolicy.drawn`, with the share `policy.eta` of DDPM's noise), and
    policy.path=betas policy.betas=vp policy.clip_a=true are part of the method: without a bound on
    the predicted action a small A divides. Times are the table's levels where there is one.

    gradient "mean" goes through the policy's own E[a|x], clipped to the box (the gradient passes):
    a Gaussian is then tilted by exactly exp(Q / (2 eta mean|Q|)).

    Critics learn r + discount V'(s'), V' the mean over target_candidates actions of the averaged
    policy for every target critic, joined by `join`. "score" counts the executed steps of a plan
    alone, whose gradients are those with a meaning; "shift" clones plans whole. B batch, T chunk,
    Da action dimension.

    Args:
        rule: Loss of the noise prediction: score follows the gradient of Q alone (QSM), shift
            clones the data moved along it (DAC).
        gradient: Where rule=shift takes the gradient of Q: point, at the noisy action, as
            published; mean, at the action predicted from it.
        temperature: Temperature of rule=score, in units of the mean size of the elements of dQ/da:
            lower is greedier; null with rule=shift.
        eta: Weight of cloning in rule=shift: larger stays closer to the data; the first value where
            there is a threshold; null with rule=score.
        eta_rate: Step of eta per unit by which the cloning error exceeds threshold (1 unit at
            most), per policy update.
        threshold: Cloning error per element (rule=shift) above which eta grows and below which it
            falls; null keeps eta.
        join: How the TD target joins the critics: min, mean, or lcb, the mean less rho standard
            deviations.
        rho: Standard deviations over the critics that join=lcb subtracts: larger is more
            pessimistic; without effect otherwise.
        target_candidates: Next actions per state over which the TD target averages Q.
        explore_noise: Standard deviation of the Gaussian noise added to exploring actions, in
            action units (the box is -1 to 1).
        lr_floor: Share of the policy's and the critics' learning rates that is left at the end of
            the run, reached along a cosine; 1 keeps them.
    """

    pure = ("critic_loss", "policy_loss")
    noisy_steps = True  # what is deployed has noise in its transitions

    executed: int | None = None
    _: KW_ONLY
    rule: Literal["score", "shift"]
    gradient: Literal["point", "mean"]
    temperature: Positive | None
    eta: Positive | None
    eta_rate: NonNegative
    threshold: NonNegative | None
    join: Join
    rho: NonNegative
    target_candidates: Count
    explore_noise: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse(self.rule, self.gradient, self.temperature, self.eta, self.threshold)
        device = self.generator.device
        self.weight = torch.tensor(0.0 if self.eta is None else self.eta, device=device)
        self.executed = self.executed if self.rule == "score" else None

    @property
    def learned(self) -> dict[str, str]:
        """What belongs to the networks: cloning's weight, where it follows the cloning error."""
        return {} if self.threshold is None else {"weight": "eta"}

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the policy with exploration noise, [N, T, Da]."""
        action = self.sampled(self.policy, obs, self.policy.noise(len(obs), self.generator))
        return draw.jittered(action, self.explore_noise, self.generator)

    @torch.no_grad()
    def sampled(self, policy: FlowPolicy, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions of the noisy chain, [N, ..., T, Da]; noise of that shape."""
        return policy.drawn(obs, noise, self.generator, policy.eta)

    def begin(self) -> float:
        share = super().begin()
        anneal(self.critic_opt, self.critic_lr, share, self.lr_floor)
        return share

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """One critic step and one policy step; metrics are 0-d."""
        parts = self.average, len(batch.obs), self.target_candidates, self.generator
        next_action = self.sampled(self.average, batch.next_obs, candidate_noise(*parts))
        loss, metrics = self.critic_loss(batch, next_action)
        step(self.critic_opt, loss)
        metrics |= self.update_policy(batch.obs, batch.action)
        lerp_(self.target, self.critic, self.target_rate)  # after the step that asked it
        return metrics

    def update_policy(self, obs: Tensor, action: Tensor) -> dict[str, Tensor]:
        """One policy step and, where eta is learned, one of its own."""
        draws = self.draw(len(obs))
        pull = self.pull(obs, action, draws)
        loss, metrics = self.policy_loss(obs, action, draws, pull, self.weight)
        self.learn_policy(loss)
        if self.threshold is not None:
            constrain(self.weight, metrics["policy/bc"], self.threshold, self.eta_rate)
        return metrics

    def draw(self, rows: int, generator: torch.Generator | None = None) -> Draws:
        """Randomness of a policy step: noise, and times at the levels of a table."""
        generator = self.generator if generator is None else generator
        t = matching_times(self.policy.path, rows, generator)
        return Draws(self.policy.noise(rows, generator), t)

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Matching loss of the averaged policy's noise prediction on held-out data."""
        draws = self.draw(len(batch.obs), generator)
        error = self.average.match(batch.obs, batch.action, *draws, space="eps")
        return {"val/loss": error.mean()}

    def noised(self, action: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """x = A a + B eps [B, T, Da], and B [B, 1, 1]."""
        c = self.policy.path.coefficients(draws.t).over_chunk()
        return c.a * self.policy.to_latent(action) + c.b * draws.noise, c.b

    def pull(self, obs: Tensor, action: Tensor, draws: Draws) -> Tensor:
        """What Q does to the noise prediction, [B, T, Da].

        B dQ / (T mean|dQ|) of rule "score", B dQ / mean|Q| of rule "shift", without gradient.
        """
        x, B = self.noised(action, draws)
        slope = self.slope(obs, x, draws.t)
        if self.rule == "score":
            assert self.temperature is not None
            size = self.temperature * slope[:, : self.executed].abs().mean()
        else:
            with torch.no_grad():
                size = self.target(obs, action).abs().mean()
        return B * slope / (size + TINY)

    def slope(self, obs: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """dQ/dx [B, T, Da] of the mean target critic at x, or at E[a|x] and through it."""
        policy = self.policy
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            at_mean = self.gradient == "mean"
            point = policy.pred(x, t, policy.features(obs)).a if at_mean else x
            action = policy.to_action(point, clip=False)
            if at_mean:  # the critic is asked inside the box; the way there is not cut
                action = action + (action.clamp(-1.0, 1.0) - action).detach()
            return torch.autograd.grad(self.target(obs, action).mean(0).sum(), x)[0]

    def critic_loss(self, batch: Batch, next_action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """TD loss of the ensemble; next_action [B, M, T, Da]."""
        with torch.no_grad():
            value = self.target(batch.next_obs[:, None], next_action).mean(-1)
            value = pessimistic(value, self.join, self.rho)
        return self.td(batch, value)

    def policy_loss(
        self, obs: Tensor, action: Tensor, draws: Draws, pull: Tensor, eta: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The rule's loss [] and metrics; pull as `pull` gives it."""
        x, _ = self.noised(action, draws)
        guess = self.policy.pred(x, draws.t, self.policy.features(obs)).eps
        if self.rule == "score":
            error = (guess + pull)[:, : self.executed].square().mean()
            return error, {"policy/loss": error.detach()}
        cloning = (guess - draws.noise).square().mean()
        loss = eta * cloning + (pull * guess).mean()
        return loss, {
            "policy/loss": loss.detach(),
            "policy/bc": cloning.detach(),
            "policy/eta": eta.detach().clone(),
        }


def _refuse(
    rule: str, gradient: str, temperature: float | None, eta: float | None, threshold: float | None
) -> None:
    """Raises ValueError for words that are unknown and for values that belong to the other rule."""
    if rule not in ("score", "shift"):
        raise ValueError(f"algo.rule={rule!r}: choose score or shift")
    if gradient not in ("point", "mean"):
        raise ValueError(f"algo.gradient={gradient!r}: choose point or mean")
    if rule == "score" and gradient == "mean":
        raise ValueError(
            "algo.gradient=mean with algo.rule=score: no data hold the prediction through which "
            "the gradient would pass; set algo.gradient=point, or algo.rule=shift"
        )
    own = {"algo.temperature": temperature} if rule == "score" else {"algo.eta": eta}
    other = {"algo.eta": eta, "algo.threshold": threshold}
    other = other if rule == "score" else {"algo.temperature": temperature}
    for key, value in own.items():
        if value is None or not value > 0:
            said = "null" if value is None else f"{value:g}"
            raise ValueError(f"{key}={said} with algo.rule={rule}: set a number above 0")
    for key, value in other.items():
        if value is not None:
            raise ValueError(f"{key}={value:g}: algo.rule={rule} has no use for it; set {key}=null")
