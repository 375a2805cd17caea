"""FlowPolicy: samples of a field, and the likelihood of those that were drawn with noise."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import draw, paths
from .field import Field, Place
from .nets import expand_lead
from .paths import Coefficients

StdFn = Callable[[Tensor, Tensor], Tensor]  # (obs [..., O], t [K]) -> std, to [..., K, T, Da]


class Chain(NamedTuple):
    """A stochastic denoising chain and its likelihood."""

    action: Tensor  # [..., T, Da] environment units, clipped
    x: Tensor  # [..., K + 1, T, Da] normalised units, x[..., 0] is the initial noise
    logp: Tensor  # [..., K] log density of each transition, summed over the executed of T and Da
    clipped: Tensor  # [..., T, Da] bool: where the final clip changed the action


class FlowPolicy(Field):
    """A field over action chunks and the deterministic and stochastic samplers of it.

    Legend, units and arguments are those of `Field`.
    """

    # ---- sampling --------------------------------------------------------------------------

    def act(
        self, obs: Tensor, noise: Tensor, steps: int | None = None, clip: bool = True
    ) -> Tensor:
        """The deterministic map from noise to an action chunk [..., T, Da], environment units.

        obs [..., O]; noise [..., T, Da] may have more leading dimensions than obs (several
        noises per state). Differentiable; only the final action is clipped, if `clip`.
        """
        feat = self.features(expand_lead(obs, noise.ndim - 2, 1))
        return self.to_action(self.integrate(feat, noise, steps), clip)

    def drawn(
        self,
        obs: Tensor,
        noise: Tensor,
        generator: torch.Generator | None,
        eta: float,
        floor: float = 0.0,
        steps: int | None = None,
    ) -> Tensor:
        """A sample of the DDIM chain with a share eta of the DDPM noise, [..., T, Da].

        `rollout` without its likelihood, so without what that needs: the last transition has no
        noise of its own, unless `floor` gives one, the least deviation of every transition. Without
        any noise, eta 0 and floor 0, it is `act`. obs [..., O]; noise [..., T, Da] may have more
        leading dimensions than obs. Raises ValueError for noise with the Heun sampler.
        """
        if eta == 0 and floor == 0:
            return self.act(obs, noise, steps)
        self._check_euler()
        times = self.times(steps)
        places, after = self._grid(times)
        feat = expand_lead(self.features(obs), noise.ndim - 2, 1)
        x = noise
        for k, place in enumerate(places):
            x, std = self._step(x, place, after[k], feat, None, eta)
            if floor > 0 or (eta > 0 and k + 1 < len(places)):
                kick = draw.normal(x.shape, generator, device=x.device, dtype=x.dtype)
                x = x + std.clamp(min=floor) * kick
        return self.to_action(x)

    def integrate(self, feat: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
        """Transport noise at t = 0 to t = 1 given encoded observations; normalised units."""
        times = self.times(steps)
        feat = expand_lead(feat, noise.ndim - 2, 1)
        if self.plain:
            return self._euler(feat, noise, self._embed(times[:-1], times[1:]).unbind(0))
        places, after = self._grid(times)
        x = noise
        for k, place in enumerate(places):
            if self.sampler == "heun" and k + 1 < len(places):
                x = self._heun(x, place, places[k + 1], feat, times[k + 1] - times[k])
            else:
                x = self._step(x, place, after[k], feat, None, 0.0)[0]
        return x

    @torch.no_grad()
    def invert(self, obs: Tensor, action: Tensor, rounds: int) -> Tensor:
        """Noise [..., T, Da] from which `act` comes back to an action [..., T, Da].

        Every transition x' = F(x) is undone from the last one on, by the iteration
        x <- x + c (x' - F(x)) from x', `rounds` network calls each, with c by the last two points
        (the secant of a scalar F'; arXiv:2606.13675 inverts a flow for steering). The closest x
        stays. Where a network folds its points or contracts them to rounding there is no exact
        noise: `act` of the answer tells. Raises ValueError for the Heun sampler.
        """
        self._check_euler()
        places, after = self._grid(self.times())
        feat = self.features(expand_lead(obs, action.ndim - 2, 1))
        x = self.to_latent(action)
        for k in reversed(range(len(places))):
            x = self._undone(x, places[k], after[k], feat, rounds)
        return x

    def _undone(
        self, end: Tensor, place: Place, c_next: Coefficients, feat: Tensor, rounds: int
    ) -> Tensor:
        """The point that a deterministic transition leads to `end`, of its shape."""

        def inner(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum((-1, -2), keepdim=True)

        x = best = end
        gap = least = last = last_x = torch.full_like(end, torch.inf)
        for n in range(rounds):
            gap = end - self._step(x, place, c_next, feat, None, 0.0)[0]
            closer = inner(gap, gap) < inner(least, least)
            best, least = torch.where(closer, x, best), torch.where(closer, gap, least)
            rate = torch.ones_like(gap[..., :1, :1])
            if n > 0:
                moved, turned = x - last_x, last - gap
                rate = inner(moved, turned) / inner(turned, turned).clamp_min(1e-30)
                rate = torch.where(rate > 0, rate.clamp(0.1, 30.0), 1.0)
            last, last_x = gap, x
            x = x + rate * gap
        return best

    @property
    def plain(self) -> bool:
        """Whether a step of `act` is x + span v and nothing else."""
        return self._straight and self.sampler == "euler" and not self.clip_x

    def _euler(self, feat: Tensor, x: Tensor, embs: tuple[Tensor, ...]) -> Tensor:
        for emb, span in zip(embs, paths.spans(len(embs), self.grid), strict=True):
            x = torch.add(x, self.net(x, emb, feat), alpha=span)
        return x

    def _heun(self, x: Tensor, place: Place, ahead: Place, feat: Tensor, span: Tensor) -> Tensor:
        """Trapezoidal step of length `span`; the network is asked at s < 1 only."""
        start = self._velocity(x, place, feat)
        end = self._velocity(x + span * start, ahead, feat)
        return x + span * (start + end) / 2

    def _grid(self, times: Tensor) -> tuple[list[Place], list[Coefficients]]:
        """For each transition of a grid, where it starts and the coefficients of its end."""
        emb, c, scale = self._place(times[:-1], times[1:])
        places = [
            Place(emb[k], Coefficients(*(value[k] for value in c)), scale[k])
            for k in range(len(emb))
        ]
        ends = (value.unbind(0) for value in self.path.coefficients(times[1:]).over_chunk())
        return places, [Coefficients(*row) for row in zip(*ends, strict=True)]

    def rollout(
        self,
        obs: Tensor,
        noise: Tensor,
        std_fn: StdFn | float,
        generator: torch.Generator | None,
        steps: int | None = None,
        span: tuple[int, int] | None = None,
        censored: bool = False,
        executed: int | None = None,
        kicks: Tensor | None = None,
    ) -> Chain:
        """Sample a Gaussian chain from `noise` and return it with its log densities.

        span: from which to which point of the grid of `steps`; all of it by default, so that two
        policies may share a chain. `Chain.action` is the last point, whatever its time.

        std_fn(obs [..., O], t [K]) gives the standard deviations of the transitions that start
        at the times t, broadcastable to [..., K, T, Da] (arXiv:2505.22094). A number instead is
        the floor under the DDIM noise of `eta` (arXiv:2409.00588); it must be positive, since
        the last DDIM transition has no noise of its own and so no density. Raises ValueError for
        that, and for the Heun sampler, whose mean is not the transition's. censored: see
        `_density`. executed: how many of the T steps, from the first, the densities count; None:
        all. kicks [..., K, T, Da]: standard normal noise of the transitions, instead of the
        generator's. Differentiable in the network and in std_fn, along the chain.
        """
        self._check_chain(std_fn, censored)
        times = self._span(steps, span)
        places, after = self._grid(times)
        obs = expand_lead(obs, noise.ndim - 2, 1)
        feat = self.features(obs)
        stds = self._given_std(std_fn, obs, times, noise)
        x, points, logps = noise, [noise], []
        for k, place in enumerate(places):
            given = None if stds is None else stds.select(-3, k)
            mean, std = self._noisy(x, place, after[k], feat, given, std_fn)
            if kicks is None:
                kick = draw.normal(x.shape, generator, device=x.device, dtype=x.dtype)
            else:
                kick = kicks.select(-3, k)
            x = mean + std * kick
            points.append(x)
            last = censored and k + 1 == len(places)
            logp = self._density(x, mean, std, last)
            logps.append(logp[..., :executed, :].sum((-1, -2)))
        raw = self.to_action(x, clip=False)
        clipped = raw.abs() > 1
        return Chain(raw.clamp(-1, 1), torch.stack(points, -3), torch.stack(logps, -1), clipped)

    def noised(self, action: Tensor, noise: Tensor) -> Tensor:
        """A chain that ends in an action [..., T, Da], made backwards, [..., K + 1, T, Da].

        x_t given x_s, t < s, is N(A_t / A_s x_s, B_t^2 - (A_t B_s / A_s)^2), as in DDPM
        (arXiv:2006.11239, eq. 2): every point has the law of the path, and the transitions, given
        the action, are those of `step` with eta = 1. In Diffusion-DPO (arXiv:2311.12908) it stands
        for the chain that drew an action, where none is known. noise: standard normal, of every
        step, to [..., K, T, Da].
        """
        steps = noise.shape[-3]
        c = self.path.coefficients(self.times(steps))
        x = self.to_latent(action)
        points = [x]
        for k in reversed(range(steps)):
            ratio = c.a[k] / c.a[k + 1]
            std = (c.b[k].square() - (ratio * c.b[k + 1]).square()).clamp(min=0).sqrt()
            x = ratio * x + std * noise.select(-3, k)
            points.append(x)
        return torch.stack(points[::-1], -3)

    def chain_logp(
        self,
        x: Tensor,
        obs: Tensor,
        std_fn: StdFn | float,
        censored: bool = False,
        executed: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log densities [..., K, T, Da] of a chain x [..., K + 1, T, Da] and entropies [..., K].

        Same grid and arithmetic as `rollout`, one network call for all K transitions,
        differentiable in the network and in std_fn. Densities are per element; an entropy is
        summed over T * Da. Every further sum or mean belongs to the algorithm. censored: see
        `_density`. executed: only so many of the T steps are returned and summed; None: all.
        """
        self._check_chain(std_fn, censored)
        steps, end = x.shape[-3] - 1, x[..., 1:, :, :]
        mean, std = self.transitions(x, obs, std_fn)
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).expand(mean.shape)
        entropy = entropy[..., :executed, :].sum((-1, -2))
        mean, std = mean.expand(end.shape), std.expand(end.shape)
        if not censored:
            return log_normal(end, mean, std)[..., :executed, :], entropy
        split = [value.tensor_split((steps - 1,), -3) for value in (end, mean, std)]
        logp = [self._density(split[0][k], split[1][k], split[2][k], k == 1) for k in range(2)]
        return torch.cat(logp, -3)[..., :executed, :], entropy

    def transitions(self, x: Tensor, obs: Tensor, std_fn: StdFn | float) -> tuple[Tensor, Tensor]:
        """Mean [..., K, T, Da] and std of the transitions from the points of a chain.

        x [..., K + 1, T, Da] as in `chain_logp`; std broadcasts to the mean.
        """
        times = self.times(x.shape[-3] - 1)
        obs = expand_lead(obs, x.ndim - 3, 1)
        place, feat = self._place(times[:-1], times[1:]), self.features(obs).unsqueeze(-2)
        after = self.path.coefficients(times[1:]).over_chunk()
        given = self._given_std(std_fn, obs, times, x[..., 0, :, :])
        return self._noisy(x[..., :-1, :, :], place, after, feat, given, std_fn)

    def _density(self, x: Tensor, mean: Tensor, std: Tensor, censored: bool) -> Tensor:
        """log N(x; mean, std^2) per element; of a censored end, the mass where it was clipped.

        An action beyond the box is executed as the bound, whatever it was: the density of the
        point where it fell would pull the mean outwards, the mass of all that lies beyond does not.
        """
        logp = log_normal(x, mean, std)
        if not censored:
            return logp
        low, high = self.action_norm.walls()
        above = torch.special.log_ndtr((mean - high) / std)
        below = torch.special.log_ndtr((low - mean) / std)
        return torch.where(x >= high, above, torch.where(x <= low, below, logp))

    def _span(self, steps: int | None, span: tuple[int, int] | None) -> Tensor:
        times = self.times(steps)
        return times if span is None else times[span[0] : span[1] + 1]

    def _noisy(self, x, place, c_next, feat, given, std_fn) -> tuple[Tensor, Tensor]:
        mean, std = self._step(x, place, c_next, feat, given, self.eta)
        return mean, std if callable(std_fn) else std.clamp(min=std_fn)

    def _given_std(
        self, std_fn: StdFn | float, obs: Tensor, times: Tensor, like: Tensor
    ) -> Tensor | None:
        if not callable(std_fn):
            return None
        shape = (*like.shape[:-2], len(times) - 1, *like.shape[-2:])
        return std_fn(obs, times[:-1]).expand(shape)

    def _check_euler(self) -> None:
        if self.sampler != "euler":
            raise ValueError(
                f"policy.sampler={self.sampler}: a chain has Euler transitions, whose likelihood "
                "is known; use euler (policy.sampler=euler)"
            )

    def _check_chain(self, std_fn: StdFn | float, censored: bool) -> None:
        self._check_euler()
        if not callable(std_fn) and std_fn <= 0:
            raise ValueError(f"std floor {std_fn}: a transition without noise has no density")
        if censored and self.squash != "clip":
            raise ValueError("a censored likelihood is of clipped actions; use policy.squash=clip")


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2) per element."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
