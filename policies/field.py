"""A field over action chunks: one for every path, prediction and network.

Legend: [...] leading dimensions (batch, particles), O flattened observation history, T horizon
(chunk length), Da action dimension, K integration steps. Time t = 0 is noise and t = 1 is data.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..ranges import Count, NonNegative, Share
from . import draw, paths
from .nets import Net, expand_lead
from .normalize import Normalizer
from .paths import Coefficients, Pred

TANH_EDGE = 0.999  # the largest action that a point at t = 1 is kept for
CHOICES = {
    "grid": ("uniform", "late"),
    "prediction": ("v", "eps", "a"),
    "sampler": ("euler", "heun"),
    "squash": ("clip", "tanh"),
}


class Place(NamedTuple):
    """Where on the path the network is asked (`paths.safe_time`), prepared once per grid."""

    emb: Tensor  # [..., W] time embedding
    c: Coefficients  # [..., 1, 1]
    scale: Tensor  # [..., 1, 1] factor on x


class Field(nn.Module):
    """What a network says at every point and time, and the transitions between two times.

    Actions cross this interface in environment units [-1, 1]; points `x`, velocities and noise are
    in the normalised units of `action_norm`.

    Sampler "euler" is the universal transition x_s = A_s a + B_s eps (DDIM with eta = 0,
    arXiv:2010.02502; on the linear path exactly Euler), "heun" adds a corrector to all steps but
    the last. DDPM's noise is in `rollout` where no function gives the noise, and in the actions of
    algorithms that act by `drawn`; `act` never adds any. clip_x (as in arXiv:2505.22094) and clip_a
    (as in DDPM samplers) clip to where actions lie: [-1, 1] in normalised units, the range of the
    data with kind "minmax", and the walls of the box with kind "gaussian", whose units know no
    range. Both apply to act, drawn, rollout and chain_logp alike, and only to Euler's transitions:
    with Heun they raise ValueError.

    Before a tanh the density has no walls; it ends at the box, or at the range of the data with
    kind "minmax". It raises ValueError with kind "gaussian", where it would end at one standard
    deviation, and with clip_x or clip_a, which would cap actions at tanh(1).

    Args:
        path: Probability path from noise to action: linear (rectified flow), cosine (variance
            preserving) or betas (a table of DDPM's noise levels).
        levels: Number of noise levels in the table of path=betas; null with the other paths.
        betas: Table of noise levels of path=betas: cosine (improved DDPM) or vp (variance
            preserving, for few levels).
        prediction: What the network outputs: v (velocity), eps (noise) or a (action).
        steps: Integration steps per action: more are slower and follow the flow more closely.
        sampler: Integrator: euler (DDIM on diffusion paths), or heun (second order, about twice the
            network calls; no clip_x, clip_a or likelihood).
        eta: Share of DDPM's noise in each denoising step, for algorithms that use a noisy chain: 0
            is deterministic (DDIM), 1 is DDPM.
        clip_x: Whether the mean of each integration step is clipped to where actions lie;
            sampler=euler only.
        clip_a: Whether the action predicted in each integration step is clipped to where actions
            lie, as DDPM does; sampler=euler only.
        squash: How actions come into the box: clip cuts the final action, tanh learns the flow
            before a tanh.
        deploy_scale: Factor on the noise that deployed actions start from: 1 samples the policy, 0
            takes one action per state.
        grid: Where the integration steps lie: uniform, or late, denser near the action, which
            narrows sharp policies less.
    """

    jumps = False  # whether a step asks for more than the velocity where it starts

    def __init__(
        self,
        net: Net,
        *,
        path: Literal["linear", "cosine", "betas"],
        levels: Count | None,
        prediction: Literal["v", "eps", "a"],
        steps: Count,
        sampler: Literal["euler", "heun"],
        eta: Share,
        clip_x: bool,
        clip_a: bool,
        squash: Literal["clip", "tanh"],
        deploy_scale: NonNegative = 1.0,
        grid: Literal["uniform", "late"] = "uniform",
        betas: Literal["cosine", "vp"] = "cosine",
        obs_norm: Normalizer,
        action_norm: Normalizer,
    ):
        super().__init__()
        self._check(
            path=path, levels=levels, prediction=prediction, sampler=sampler, eta=eta,
            clip_x=clip_x, clip_a=clip_a, squash=squash, grid=grid, betas=betas,
            units=action_norm.kind,
        )  # fmt: skip
        self.net, self.obs_norm, self.action_norm = net, obs_norm, action_norm
        self.path = paths.make_path(path, levels, betas)
        self.horizon, self.action_dim = net.horizon, net.action_dim
        self.prediction: paths.Prediction = prediction
        self.steps, self.sampler = steps, sampler
        self.grid: paths.Grid = grid
        self.eta, self.clip_x, self.clip_a = eta, clip_x, clip_a
        self.squash, self.deploy_scale = squash, deploy_scale
        self._extend()

    def _check(self, **given: Any) -> None:
        """Raises ValueError for settings that are unknown or do not go together."""
        for key, options in CHOICES.items():
            if given[key] not in options:
                listed = f"{', '.join(options[:-1])} or {options[-1]}"
                raise ValueError(f"{key}={given[key]!r}: choose {listed}")
        if given["sampler"] == "heun" and (given["clip_x"] or given["clip_a"]):
            raise ValueError("clip_x and clip_a belong to Euler's transitions; use sampler=euler")
        if given["squash"] == "tanh":
            _refuse_capped(given["units"], given["clip_x"], given["clip_a"])

    def _extend(self) -> None:
        """Adds what a kind of policy has beside the network."""

    # ---- the field -------------------------------------------------------------------------

    def noise(self, lead: int | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normal points at t = 0, [*lead, T, Da]."""
        return draw.chunks(self, lead, generator)

    def start(self, lead: int | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Points at t = 0 for deployed actions: noise times `deploy_scale`, [*lead, T, Da]."""
        return self.deploy_scale * self.noise(lead, generator)

    def times(self, steps: int | None = None) -> Tensor:
        """The time grid [K + 1] from 0 to 1; every sampler and likelihood uses this one."""
        where = next(self.net.parameters())
        steps = self.steps if steps is None else steps
        return self.path.times(steps, where.device, self.grid).to(where.dtype)

    def features(self, obs: Tensor) -> Tensor:
        """Encoded observations [..., W]: normalised here, computed once per action."""
        return self.net.encode(self.obs_norm(obs))

    def velocity(self, x: Tensor, t: Tensor, feat: Tensor) -> Tensor:
        """v(x, t | feat) [..., T, Da]. x [..., T, Da], t [...], feat [..., W]."""
        lead = x.ndim - 2
        t, feat = expand_lead(t, lead, 0), expand_lead(feat, lead, 1)
        if self.prediction == "v":
            return self.net(x, self._embed(t), feat)
        return self._velocity(x, self._place(t), feat)

    def pred(self, x: Tensor, t: Tensor, feat: Tensor) -> Pred:
        """One network call in all four forms; shapes as in `velocity`."""
        lead = x.ndim - 2
        place = self._place(expand_lead(t, lead, 0))
        x = x * place.scale
        out = self.net(x, place.emb, expand_lead(feat, lead, 1))
        return paths.convert(self.prediction, out, x, place.c, self.path.floor)

    def _embed(self, t: Tensor, s: Tensor | None = None) -> Tensor:
        """What the network is told of a transition from t to s, or at t alone, [..., W].

        A velocity belongs to its time: it does not depend on where the transition ends.
        """
        return self.net.embed(t)

    def _place(self, t: Tensor, s: Tensor | None = None) -> Place:
        safe, scale = paths.safe_time(self.prediction, t, self.path)
        c = self.path.coefficients(safe).over_chunk()
        return Place(self._embed(safe, s), c, scale[..., None, None])

    def _velocity(self, x: Tensor, place: Place, feat: Tensor) -> Tensor:
        x = x * place.scale
        out = self.net(x, place.emb, feat)
        return paths.velocity(self.prediction, out, x, place.c, self.path.floor)

    # ---- transitions -----------------------------------------------------------------------

    def step(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        feat: Tensor,
        std: Tensor | None = None,
        eta: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Gaussian transition from t to s > t: mean [..., T, Da] and std (broadcastable to it).

        With `std` given: mean = A_s a + B_s eps and that std on top (arXiv:2505.22094). Without:
        std = eta B_s sqrt(1 - (A_t B_s / (A_s B_t))^2), mean = A_s a + sqrt(B_s^2 - std^2) eps
        (DDIM, arXiv:2010.02502; eta = 1 is the DDPM posterior, eta = 0 deterministic).
        """
        lead = x.ndim - 2
        t, s, feat = expand_lead(t, lead, 0), expand_lead(s, lead, 0), expand_lead(feat, lead, 1)
        after = self.path.coefficients(s).over_chunk()
        return self._step(x, self._place(t, s), after, feat, std, eta)

    def _step(
        self,
        x: Tensor,
        place: Place,
        c_next: Coefficients,
        feat: Tensor,
        std: Tensor | None,
        eta: float,
    ) -> tuple[Tensor, Tensor]:
        c = place.c
        if self._straight and (std is not None or eta == 0):
            mean = x + (c_next.a - c.a) * self.net(x, place.emb, feat)
            std = torch.zeros_like(c.a) if std is None else std
            return self._bounded(mean) if self.clip_x else mean, std
        keep = c_next.b
        if std is None:
            ratio = c.a * c_next.b / (c_next.a * c.b).clamp(min=1e-12)
            std = eta * c_next.b * (1 - ratio.square()).clamp(min=0).sqrt()
            keep = (c_next.b.square() - std.square()).clamp(min=0).sqrt()
        x = x * place.scale
        out = self.net(x, place.emb, feat)
        _, a, eps, _ = paths.convert(self.prediction, out, x, c, self.path.floor)
        if self.clip_a:
            a = self._bounded(a)
            eps = (x - c.a * a) / c.b.clamp(min=self.path.floor)
        mean = c_next.a * a + keep * eps
        return self._bounded(mean) if self.clip_x else mean, std

    def _bounded(self, x: Tensor) -> Tensor:
        """Normalised points [..., T, Da], clipped to where actions lie."""
        if self.action_norm.kind != "gaussian":
            return x.clamp(-1, 1)
        low, high = self.action_norm.walls()
        return torch.minimum(torch.maximum(x, low), high)

    # ---- units -----------------------------------------------------------------------------

    def to_latent(self, action: Tensor) -> Tensor:
        """The point at t = 1 of an action [..., T, Da] in environment units.

        With squash "tanh" actions on the border, whose point would be infinite, are moved to
        +-TANH_EDGE.
        """
        point = self.action_norm(action)
        return point.clamp(-TANH_EDGE, TANH_EDGE).atanh() if self.squash == "tanh" else point

    def to_action(self, x: Tensor, clip: bool = True) -> Tensor:
        """The action in environment units of a point [..., T, Da] at t = 1."""
        action = self.action_norm.inverse(x.tanh() if self.squash == "tanh" else x)
        return action.clamp(-1, 1) if clip else action

    @property
    def is_flow(self) -> bool:
        """Whether this is a rectified flow; else a diffusion policy, which converts to one."""
        return isinstance(self.path, paths.Linear) and self.prediction == "v"

    @property
    def _straight(self) -> bool:
        """Whether the universal transition is x + (s - t) v: no other form is needed then."""
        return self.is_flow and not self.clip_a

    # ---- losses ----------------------------------------------------------------------------

    def match(
        self,
        obs: Tensor,
        action: Tensor,
        noise: Tensor,
        t: Tensor,
        space: Literal["v", "eps", "a"] = "v",
        inside: Tensor | None = None,
    ) -> Tensor:
        """Matching loss of action chunks, per sample [...]: mean over T * Da, unreduced otherwise.

        The mean of `match_errors`. Weights, signed ones too, are the caller's. inside [..., T] bool
        leaves actions out of the mean, as those past an episode's end.
        """
        error = self.match_errors(obs, action, noise, t, space).mean(-1)
        inside = None if inside is None else expand_lead(inside, noise.ndim - 2, 1)
        return chunk_mean(error, inside)

    def match_errors(
        self,
        obs: Tensor,
        action: Tensor,
        noise: Tensor,
        t: Tensor,
        space: Literal["v", "eps", "a"] = "v",
    ) -> Tensor:
        """(form(x_t) - target)^2 at x_t = A a + B noise, [..., T, Da].

        In the form that `space` names (flow matching arXiv:2210.02747 for v). action [..., T, Da]
        in environment units, noise of the same or more leading dimensions, t [...].
        """
        feat = self.features(expand_lead(obs, noise.ndim - 2, 1))
        return self.errors(feat, action, noise, t, space)

    def errors(
        self, feat: Tensor, action: Tensor, noise: Tensor, t: Tensor, space: paths.Prediction
    ) -> Tensor:
        """`match_errors` of encoded observations, feat [..., W]."""
        lead = noise.ndim - 2
        t = expand_lead(t, lead, 0)
        a = self.to_latent(expand_lead(action, lead, 2))
        c = self.path.coefficients(t).over_chunk()
        x = c.a * a + c.b * noise
        if space not in ("v", "eps", "a"):
            raise ValueError(f"space={space!r}: choose v, eps or a")
        if space == self.prediction:
            value = self.net(x, self._embed(t), feat)  # no conversion, so no edge of time
        elif space == "v":
            value = self.velocity(x, t, feat)
        else:
            value = getattr(self.pred(x, t, feat), space)
        target = {"v": c.da * a + c.db * noise, "eps": noise, "a": a}[space]
        return (value - target).square()


def _refuse_capped(kind: str, clip_x: bool, clip_a: bool) -> None:
    """Raises ValueError for settings under which a tanh would cap actions inside their box."""
    if kind == "gaussian":
        raise ValueError(
            "policy.squash=tanh with policy.action_norm.kind=gaussian: no action could lie further "
            "than one standard deviation from the data's mean; set policy.action_norm.kind=none "
            "(or minmax, to stay in the data's range), or policy.squash=clip"
        )
    if clip_x or clip_a:
        key = "clip_x" if clip_x else "clip_a"
        raise ValueError(
            f"policy.squash=tanh with policy.{key}=true: points before the tanh have no range, and "
            f"clipped to [-1, 1] they cap actions at tanh(1) = 0.76; set policy.{key}=false, or "
            "policy.squash=clip"
        )


def chunk_mean(error: Tensor, inside: Tensor | None) -> Tensor:
    """Mean over the steps of a chunk, [..., T] -> [...]; inside [..., T] bool says which count."""
    if inside is None:
        return error.mean(-1)
    inside = inside.to(error.dtype)
    return (error * inside).sum(-1) / inside.sum(-1).clamp_min(1.0)
