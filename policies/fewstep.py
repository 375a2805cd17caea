"""FewStepPolicy: a field of average velocities, which crosses the path in one or a few steps."""

from typing import Any

import torch
from torch import Tensor

from .field import Place
from .flow import FlowPolicy
from .nets import TimeEmbedding, expand_lead, zero_
from .paths import Coefficients

ONLY: dict[str, object] = {  # values under which average velocities exist
    **{"path": "linear", "levels": None, "prediction": "v", "sampler": "euler"},
    **{"eta": 0.0, "clip_a": False, "betas": "cosine"},
}
ALSO = {"eta": (0.0, 1.0)}  # keys with other values than the one that is named
LENGTH_PERIODS = 1.0  # u changes slowly with the length of a step, and MeanFlow differentiates it


class FewStepPolicy(FlowPolicy):
    """A policy whose network is told where a step ends, not only where it starts.

    u(x, t, s | obs) is the mean of the velocity over [t, s] along the flow's own trajectory from x,
    so that x_s = x_t + (s - t) u(x_t, t, s) is exact for steps of any length (shortcut models
    arXiv:2410.12557, mean flows arXiv:2505.13447); u(x, t, t) is the velocity. A transition of a
    grid is one such step, in `act`, `step`, `rollout` and `chain_logp` alike, and nothing else
    differs from `FlowPolicy`: `velocity`, `pred` and `match` ask at s = t.

    With eta = 1 a noisy transition from t to s jumps to the end, a = x + (1 - t) u(x, t, 1), and
    goes back by fresh noise: x_s ~ N(s a, (1 - s)^2), the transition of consistency models
    (arXiv:2303.01469, algorithm 1; as a decision of its own, arXiv:2404.03673). Its density is
    known, and where u is exact every point has the law of the path, however few steps there are.
    `act` has no noise.

    The network's own embedding of t is summed with a second one of the length s - t, whose last
    layer starts at zero: a fresh policy is the plain flow of its network. Both embeddings should be
    of low frequency (the network's `time_periods`), since mean flow learns from the network's own
    derivative in t, which a wave of n periods multiplies by 2 pi n: with n = 16 it diverges (the
    instability that arXiv:2410.11081 describes for consistency models). Average velocities exist
    here on the linear path, in the form v, with Euler's steps; what a clipped data prediction or a
    part of DDIM's noise need is the velocity at t. So other values of path, levels, betas,
    prediction, sampler, eta and clip_a raise ValueError.

    What an algorithm moves by matching velocities acts here only as far as the weights are shared,
    so those algorithms refuse it (`algos.losses.refuse_jumps`).

    Args:
        path: Probability path from noise to action: linear, the only one on which average
            velocities exist here.
        levels: Noise levels of a table, which a policy of average velocities does not have: null.
        betas: Table of noise levels, which a policy of average velocities does not use: cosine, as
            it ships.
        prediction: What the network outputs: v, the average velocity; nothing else exists here.
        steps: Steps per action, 1 or a few: each is one call of the network, however long.
        sampler: Integrator of the steps: euler, which is exact for average velocities; nothing else
            exists here.
        eta: Noise of each step, for algorithms that use a noisy chain: 0, none, or 1, a jump to the
            end and back to where the step ends by fresh noise.
        clip_x: Whether the end of each step is clipped to where actions lie.
        clip_a: Whether a predicted action is clipped, which average velocities do not allow: false.
        grid: Where the steps lie: uniform, or late, denser near the action; algo=shortcut needs
            uniform.
    """

    jumps = True

    def _check(self, **given: Any) -> None:
        _refuse({key: given[key] for key in ONLY})
        super()._check(**given)

    def _extend(self) -> None:
        start = next(self.net.parameters()).new_zeros(1)
        with torch.no_grad():
            self.jump = TimeEmbedding(self.net.embed(start).shape[-1], LENGTH_PERIODS)
        zero_(self.jump.net.layers[-1])

    def average_velocity(self, x: Tensor, t: Tensor, s: Tensor, feat: Tensor) -> Tensor:
        """u(x, t, s | feat) [..., T, Da], s >= t. x [..., T, Da], t and s [...], feat [..., W]."""
        lead = x.ndim - 2
        t, s = expand_lead(t, lead, 0), expand_lead(s, lead, 0)
        return self.net(x, self._embed(t, s), expand_lead(feat, lead, 1))

    def step(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        feat: Tensor,
        std: Tensor | None = None,
        eta: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Gaussian transition from t to s > t: mean x + (s - t) u(x, t, s) and `std` (none: 0).

        With eta 1 and no std mean s a and std 1 - s, a the end of the jump from x. Shapes as in
        `FlowPolicy.step`. Raises ValueError for another eta.
        """
        _refuse({"eta": eta})
        return super().step(x, t, s, feat, std, eta)

    def _step(
        self,
        x: Tensor,
        place: Place,
        c_next: Coefficients,
        feat: Tensor,
        std: Tensor | None,
        eta: float,
    ) -> tuple[Tensor, Tensor]:
        if eta == 0 or std is not None:
            return super()._step(x, place, c_next, feat, std, eta)
        left = 1 - place.c.a  # of the path, [..., 1, 1]
        emb = self._embed(place.c.a[..., 0, 0], torch.ones_like(left[..., 0, 0]))
        end = x + left * self.net(x, emb, feat)
        return c_next.a * (self._bounded(end) if self.clip_x else end), c_next.b

    def drawn(
        self,
        obs: Tensor,
        noise: Tensor,
        generator: torch.Generator | None,
        eta: float,
        floor: float = 0.0,
        steps: int | None = None,
    ) -> Tensor:
        """As `FlowPolicy.drawn`. Raises ValueError for an eta that is neither 0 nor 1."""
        _refuse({"eta": eta})
        return super().drawn(obs, noise, generator, eta, floor, steps)

    def _embed(self, t: Tensor, s: Tensor | None = None) -> Tensor:
        return self.net.embed(t) + self.jump(torch.zeros_like(t) if s is None else s - t)


def _refuse(given: dict[str, object]) -> None:
    wrong = [key for key, value in given.items() if value not in ALSO.get(key, (ONLY[key],))]
    if wrong:
        found, needed = (
            " ".join(f"policy.{key}={_typed(values[key])}" for key in wrong)
            for values in (given, ONLY)
        )
        raise ValueError(
            f"{found}: average velocities need {needed}; policy=fewstep has these, but the file of "
            "an algorithm for plain flows may set others (dppo's does): set them by hand"
        )


def _typed(value: object) -> str:
    return "null" if value is None else str(value).lower()
