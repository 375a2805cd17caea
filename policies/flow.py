"""FlowPolicy: one generative policy for every path, prediction and network.

Legend: [...] leading dimensions (batch, particles), O flattened observation history, T horizon
(chunk length), Da action dimension, K integration steps. Time t = 0 is noise and t = 1 is data.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from . import paths
from .nets import MLP, Net, clone, expand_lead
from .normalize import Normalizer
from .paths import Coefficients, Pred
from .single import Single

StdFn = Callable[[Tensor, Tensor], Tensor]  # (obs [..., O], t [K]) -> std, to [..., K, T, Da]


class Chain(NamedTuple):
    """A stochastic denoising chain and its likelihood."""

    action: Tensor  # [..., T, Da] environment units, clipped
    x: Tensor  # [..., K + 1, T, Da] normalised units, x[..., 0] is the initial noise
    logp: Tensor  # [..., K] log density of each transition, summed over T * Da
    clipped: Tensor  # [..., T, Da] bool: where the final clip changed the action


class FlowPolicy(nn.Module):
    """A field over action chunks and the deterministic and stochastic samplers of it.

    Actions cross this interface in environment units [-1, 1]; points `x`, velocities and noise
    are in the normalised units of `action_norm`. `prediction` says what the network outputs.

    steps: integration steps used when a call names none. sampler: "euler" is the universal
    transition x_s = A_s a + B_s eps (DDIM with eta = 0, arXiv:2010.02502; on the linear path
    exactly Euler), "heun" adds a corrector to all steps but the last. eta: share of the DDPM
    posterior noise in `rollout` when it gets no function for the noise; `act` never adds noise. clip_x clips
    every transition's mean to [-1, 1] (as in arXiv:2505.22094), clip_a its data prediction (as
    in DDPM samplers); both apply to act, rollout and chain_logp alike. squash: "clip" clips the
    final action to [-1, 1]; "tanh" learns the flow before a tanh, so its density has no walls.
    """

    def __init__(
        self,
        net: Net,
        *,
        path: Literal["linear", "cosine", "betas"],
        levels: int | None,
        prediction: Literal["v", "eps", "a"],
        steps: int,
        sampler: Literal["euler", "heun"],
        eta: float,
        clip_x: bool,
        clip_a: bool,
        squash: Literal["clip", "tanh"],
        obs_norm: Normalizer,
        action_norm: Normalizer,
    ):
        super().__init__()
        if prediction not in ("v", "eps", "a"):
            raise ValueError(f"prediction={prediction!r}: choose v, eps or a")
        if sampler not in ("euler", "heun"):
            raise ValueError(f"sampler={sampler!r}: choose euler or heun")
        self.net, self.obs_norm, self.action_norm = net, obs_norm, action_norm
        self.path = paths.make_path(path, levels)
        self.horizon, self.action_dim = net.horizon, net.action_dim
        self.prediction: paths.Prediction = prediction
        self.steps, self.sampler = steps, sampler
        self.eta, self.clip_x, self.clip_a = eta, clip_x, clip_a
        self.squash = squash
        self._single: Single | None = None

    # ---- the field -------------------------------------------------------------------------

    def noise(self, lead: int | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Standard normal points at t = 0, [*lead, T, Da]."""
        shape = (lead,) if isinstance(lead, int) else tuple(lead)
        where = next(self.net.parameters())
        size = (*shape, self.horizon, self.action_dim)
        return torch.randn(size, generator=generator, device=where.device, dtype=where.dtype)

    def times(self, steps: int | None = None) -> Tensor:
        """The time grid [K + 1] from 0 to 1; every sampler and likelihood uses this one."""
        where = next(self.net.parameters())
        steps = self.steps if steps is None else steps
        return self.path.times(steps, where.device).to(where.dtype)

    def features(self, obs: Tensor) -> Tensor:
        """Encoded observations [..., W]: normalised here, computed once per action."""
        return self.net.encode(self.obs_norm(obs))

    def velocity(self, x: Tensor, t: Tensor, feat: Tensor) -> Tensor:
        """v(x, t | feat) [..., T, Da]. x [..., T, Da], t [...], feat [..., W]."""
        lead = x.ndim - 2
        t, feat = expand_lead(t, lead, 0), expand_lead(feat, lead, 1)
        out = self.net(x, self.net.embed(t), feat)
        if self.prediction == "v":
            return out
        c = self.path.coefficients(t).over_chunk()
        return paths.velocity(self.prediction, out, x, c, self.path.floor)

    def pred(self, x: Tensor, t: Tensor, feat: Tensor) -> Pred:
        """One network call in all four forms; shapes as in `velocity`."""
        lead = x.ndim - 2
        t, feat = expand_lead(t, lead, 0), expand_lead(feat, lead, 1)
        return self._pred(x, self.net.embed(t), feat, self.path.coefficients(t).over_chunk())

    def _pred(self, x: Tensor, emb: Tensor, feat: Tensor, c: Coefficients) -> Pred:
        return paths.convert(self.prediction, self.net(x, emb, feat), x, c, self.path.floor)

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
        t, s = expand_lead(t, lead, 0), expand_lead(s, lead, 0)
        emb, feat = self.net.embed(t), expand_lead(feat, lead, 1)
        c = self.path.coefficients(t).over_chunk()
        return self._step(x, emb, feat, c, self.path.coefficients(s).over_chunk(), std, eta)

    def _step(self, x, emb, feat, c, c_next, std, eta) -> tuple[Tensor, Tensor]:
        keep = c_next.b
        if std is None:
            ratio = c.a * c_next.b / (c_next.a * c.b).clamp(min=1e-12)
            std = eta * c_next.b * (1 - ratio.square()).clamp(min=0).sqrt()
            keep = (c_next.b.square() - std.square()).clamp(min=0).sqrt()
        pred = self._pred(x, emb, feat, c)
        a, eps = pred.a, pred.eps
        if self.clip_a:
            a = a.clamp(-1, 1)
            eps = (x - c.a * a) / c.b.clamp(min=self.path.floor)
        mean = c_next.a * a + keep * eps
        return mean.clamp(-1, 1) if self.clip_x else mean, std

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

    # ---- sampling --------------------------------------------------------------------------

    def act(
        self, obs: Tensor, noise: Tensor, steps: int | None = None, clip: bool = True
    ) -> Tensor:
        """The deterministic map from noise to an action chunk [..., T, Da], environment units.

        obs [..., O]; noise [..., T, Da] may have more leading dimensions than obs (several
        noises per state). Differentiable; only the final action is clipped, if `clip`.
        """
        single = self._single_for(obs, noise)
        if single is not None and isinstance(self.path, paths.Linear):
            steps = self.steps if steps is None else steps
            x = single.integrate(self.obs_norm(obs), noise, self.path, steps)
        else:
            feat = self.features(expand_lead(obs, noise.ndim - 2, 1))
            x = self.integrate(feat, noise, steps)
        return self.to_action(x, clip)

    def _single_for(self, obs: Tensor, noise: Tensor) -> Single | None:
        """The light loop for one row, where it gives the same result; None elsewhere."""
        if not (self._plain and type(self.net) is MLP and Single.serves(self.net, obs, noise)):
            return None
        if self._single is None or not self._single.current(self.net):
            self._single = Single(self.net)
        return self._single

    def integrate(self, feat: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
        """Transport noise at t = 0 to t = 1 given encoded observations; normalised units."""
        times = self.times(steps)
        embs = self.net.embed(times[:-1]).unbind(0)
        feat = expand_lead(feat, noise.ndim - 2, 1)
        if self._plain:
            return self._euler(feat, noise, embs)
        grid = self._grid(times)
        x = noise
        for k, emb in enumerate(embs):
            if self.sampler == "heun" and k + 1 < len(embs):
                x = self._heun(x, (emb, embs[k + 1]), feat, (grid[k], grid[k + 1]), times[k:k + 2])
            else:
                x = self._step(x, emb, feat, grid[k], grid[k + 1], None, 0.0)[0]
        return x

    @property
    def _plain(self) -> bool:
        """Whether a step is x + v / K: linear path, velocity prediction, nothing clipped."""
        linear = isinstance(self.path, paths.Linear) and self.prediction == "v"
        return linear and self.sampler == "euler" and not (self.clip_x or self.clip_a)

    def _euler(self, feat: Tensor, x: Tensor, embs: tuple[Tensor, ...]) -> Tensor:
        for emb in embs:
            x = torch.add(x, self.net(x, emb, feat), alpha=1 / len(embs))
        return x

    def _heun(self, x, embs, feat, cs, times) -> Tensor:
        """Trapezoidal step. The network is asked at s < 1 only, so no form is singular."""
        floor, span = self.path.floor, times[1] - times[0]
        start = paths.velocity(self.prediction, self.net(x, embs[0], feat), x, cs[0], floor)
        ahead = x + span * start
        end = paths.velocity(self.prediction, self.net(ahead, embs[1], feat), ahead, cs[1], floor)
        mean = x + span * (start + end) / 2
        return mean.clamp(-1, 1) if self.clip_x else mean

    def _grid(self, times: Tensor) -> list[Coefficients]:
        table = self.path.coefficients(times).over_chunk()
        return [Coefficients(*row) for row in zip(*(value.unbind(0) for value in table))]

    def rollout(
        self,
        obs: Tensor,
        noise: Tensor,
        std_fn: StdFn | float,
        generator: torch.Generator | None,
        steps: int | None = None,
    ) -> Chain:
        """Sample a Gaussian chain from `noise` and return it with its log densities.

        std_fn(obs [..., O], t [K]) gives the standard deviations of the transitions that start
        at the times t, broadcastable to [..., K, T, Da] (arXiv:2505.22094). A number instead is
        the floor under the DDIM noise of `eta` (arXiv:2409.00588); it must be positive, since
        the last DDIM transition has no noise of its own and so no density. Raises ValueError for
        that, and for the Heun sampler, whose mean is not the transition's.
        """
        self._check_chain(std_fn)
        times = self.times(steps)
        embs, grid = self.net.embed(times[:-1]).unbind(0), self._grid(times)
        obs = expand_lead(obs, noise.ndim - 2, 1)
        feat = self.features(obs)
        stds = self._given_std(std_fn, obs, times, noise)
        x, points, logps = noise, [noise], []
        for k, emb in enumerate(embs):
            given = None if stds is None else stds.select(-3, k)
            mean, std = self._noisy(x, emb, feat, grid[k], grid[k + 1], given, std_fn)
            kick = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = mean + std * kick
            points.append(x)
            logps.append(log_normal(x, mean, std).sum((-1, -2)))
        raw = self.to_action(x, clip=False)
        clipped = raw.abs() > 1
        return Chain(raw.clamp(-1, 1), torch.stack(points, -3), torch.stack(logps, -1), clipped)

    def chain_logp(
        self, x: Tensor, obs: Tensor, std_fn: StdFn | float
    ) -> tuple[Tensor, Tensor]:
        """Log densities [..., K, T, Da] of a chain x [..., K + 1, T, Da] and entropies [..., K].

        Same grid and arithmetic as `rollout`, one network call for all K transitions,
        differentiable in the network and in std_fn. Densities are per element; an entropy is
        summed over T * Da. Every further sum or mean belongs to the algorithm.
        """
        self._check_chain(std_fn)
        lead, steps = x.ndim - 3, x.shape[-3] - 1
        times = self.times(steps)
        obs = expand_lead(obs, lead, 1)
        emb, feat = self.net.embed(times[:-1]), self.features(obs).unsqueeze(-2)
        table = self.path.coefficients(times).over_chunk()
        now = Coefficients(*(value[:-1] for value in table))
        after = Coefficients(*(value[1:] for value in table))
        start, end = x[..., :-1, :, :], x[..., 1:, :, :]
        given = self._given_std(std_fn, obs, times, x[..., 0, :, :])
        mean, std = self._noisy(start, emb, feat, now, after, given, std_fn)
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).expand(mean.shape)
        return log_normal(end, mean, std), entropy.sum((-1, -2))

    def _noisy(self, x, emb, feat, c, c_next, given, std_fn) -> tuple[Tensor, Tensor]:
        mean, std = self._step(x, emb, feat, c, c_next, given, self.eta)
        return mean, std if callable(std_fn) else std.clamp(min=std_fn)

    def _given_std(
        self, std_fn: StdFn | float, obs: Tensor, times: Tensor, like: Tensor
    ) -> Tensor | None:
        if not callable(std_fn):
            return None
        shape = (*like.shape[:-2], len(times) - 1, *like.shape[-2:])
        return std_fn(obs, times[:-1]).expand(shape)

    def _check_chain(self, std_fn: StdFn | float) -> None:
        if self.sampler != "euler":
            raise ValueError(f"sampler={self.sampler}: a chain has Euler transitions; use euler")
        if not callable(std_fn) and std_fn <= 0:
            raise ValueError(f"std floor {std_fn}: a transition without noise has no density")

    # ---- losses ----------------------------------------------------------------------------

    def match(
        self,
        obs: Tensor,
        action: Tensor,
        noise: Tensor,
        t: Tensor,
        space: Literal["v", "eps", "a"] = "v",
    ) -> Tensor:
        """Matching loss of action chunks, per sample [...]: mean over T * Da, unreduced otherwise.

        |form(x_t) - target|^2 at x_t = A a + B noise, in the form that `space` names (flow
        matching arXiv:2210.02747 for v). action [..., T, Da] in environment units, noise of the
        same or more leading dimensions, t [...]. Weights, signed ones too, are the caller's.
        """
        lead = noise.ndim - 2
        t = expand_lead(t, lead, 0)
        a = self.to_latent(expand_lead(action, lead, 2))
        c = self.path.coefficients(t).over_chunk()
        x = c.a * a + c.b * noise
        feat = self.features(expand_lead(obs, lead, 1))
        if space == "v":
            error = self.velocity(x, t, feat) - (c.da * a + c.db * noise)
        elif space in ("eps", "a"):
            error = getattr(self.pred(x, t, feat), space) - (a if space == "a" else noise)
        else:
            raise ValueError(f"space={space!r}: choose v, eps or a")
        return error.square().mean((-1, -2))

    def regress(self, obs: Tensor, x: Tensor, t: Tensor, target_v: Tensor) -> Tensor:
        """Squared distance of v(x, t | obs) to given targets, per sample [...]: mean over T * Da.

        x and target_v [..., T, Da] in normalised units, t [...].
        """
        feat = self.features(expand_lead(obs, x.ndim - 2, 1))
        return (self.velocity(x, t, feat) - target_v).square().mean((-1, -2))

    def clone(self, frozen: bool = True) -> "FlowPolicy":
        """A copy to act as target, anchor or average; a frozen one takes no gradient."""
        return clone(self, frozen)


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2) per element."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
