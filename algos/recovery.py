"""ADG: which entries of recorded episodes are corrupted, and what they were (arXiv:2505.23871).

A slice is the 2 H + 1 steps around one. Noise above a level k_a drowns what corruption added
(theorem 4.3), so a detector that learns from those levels alone knows what slices are like without
having learnt the corruption. A denoiser learns the levels below, from entries that are trusted.

Of the detector eq. 6 regresses a slice of level k on one of level k_a, made from the same data. By
Tweedie's formula that has the minimum of the plain error of the noise at k (corollary 4.1), which
varies less and is what is taken here.

S steps, B slices, T = 2 H + 1, M numbers of a step, in [-1, 1]. Times are t = 1 - k / LEVELS.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..policies import draw
from ..policies.flow import FlowPolicy
from ..policies.nets import MLP
from ..policies.normalize import Normalizer
from ..policies.steer import inpainted
from .optim import adam, cosine, set_rate, step

LEVELS, WIDTH, DEPTH, BATCH = 100, 256, 3, 256  # of table 3
STEPS = 10  # transitions over all levels: those below k_a = 30 are three
LR, WARMUP, FLOOR, MAX_NORM = 1e-3, 0.02, 0.01, 10.0
ROWS = 4096  # slices that are asked for at once


class Slice(NamedTuple):
    """Slices around some steps."""

    value: Tensor  # [B, T, M], 0 outside the episode
    inside: Tensor  # [B, T] bool: the steps of the episode
    place: Tensor  # [B, T] which steps they are; outside, any


class Slices(NamedTuple):
    """Episodes end to end, cut around any step."""

    rows: Tensor  # [S, M]
    first: Tensor  # [S] first step of each one's episode
    after: Tensor  # [S] the one behind its last
    half: int  # H

    def around(self, centre: Tensor) -> Slice:
        """The slices of the steps `centre` [B]."""
        place = centre[:, None] + torch.arange(-self.half, self.half + 1)
        inside = (place >= self.first[centre, None]) & (place < self.after[centre, None])
        place = place.clamp(0, len(self.rows) - 1)
        return Slice(self.rows[place] * inside[..., None], inside, place)


def field(rows: Tensor, half: int, prediction: Literal["eps", "a"]) -> FlowPolicy:
    """An untrained field for slices of rows [S, M]; it observes which steps there are.

    prediction: "eps" for a detector, whose noise is asked for. A denoiser predicts the data, "a":
    those of a slice lie close together, while its noise is more numbers than a network of this
    width may hand on. Weights are drawn by torch's own generator.
    """
    size, steps = rows.shape[1], 2 * half + 1
    shape = {"width": WIDTH, "depth": DEPTH, "encoder_depth": 1, "activation": "mish"}
    norm = Normalizer(size, kind="gaussian", feature="slices")
    norm.fit(rows)
    return FlowPolicy(
        MLP(steps, size, steps, **shape),
        **{"path": "betas", "levels": LEVELS, "betas": "vp", "steps": STEPS},
        prediction=prediction,
        **{"sampler": "euler", "eta": 0.0, "clip_x": False, "clip_a": False, "squash": "clip"},
        obs_norm=Normalizer(steps, kind="none"),
        action_norm=norm,
    )


def fit(
    policy: FlowPolicy,
    slices: Slices,
    levels: tuple[int, int],
    updates: int,
    generator: torch.Generator,
    trusted: Tensor | None = None,
) -> Iterator[Tensor]:
    """Learns slices at the levels from the one to the other; the loss [] of each step.

    trusted [S, M] bool: entries whose error counts (eq. 7); None: all. What is not is seen all the
    same. Only steps inside their episode count.
    """
    optimizer, (low, high) = adam(policy.parameters(), LR), levels
    for update in range(updates):
        set_rate(optimizer, LR * cosine((update + 1) / updates, WARMUP, FLOOR))
        centre = torch.randint(len(slices.rows), (BATCH,), generator=generator)
        value, inside, place = slices.around(centre)
        t = 1 - torch.randint(low, high + 1, (BATCH,), generator=generator) / LEVELS
        noise = draw.normal(value.shape, generator, device=value.device)
        error = policy.match_errors(inside.float(), value, noise, t, policy.prediction)
        counted = inside[..., None] if trusted is None else inside[..., None] & trusted[place]
        counted = counted.expand_as(error).to(error.dtype)
        loss = (error * counted).sum() / counted.sum().clamp_min(1.0)
        step(optimizer, loss, MAX_NORM)
        yield loss.detach()


@torch.no_grad()
def predicted(policy: FlowPolicy, slices: Slices, level: int) -> Tensor:
    """The noise that every step is told to have, [S, M]: eps(A x, level) at its slice's centre.

    Nothing is added to the slice, only its size is that of the level (A.3, the consistency
    operation), so what does not belong to the data is all the noise there is.
    """
    time = torch.tensor(1 - level / LEVELS)
    found = []
    for centre in torch.arange(len(slices.rows)).split(ROWS):
        value, inside, _ = slices.around(centre)
        x = policy.path.coefficients(time).a * policy.to_latent(value)
        found.append(policy.pred(x, time, policy.features(inside.float())).eps[:, slices.half])
    return torch.cat(found)


@torch.no_grad()
def repaired(policy: FlowPolicy, slices: Slices, flagged: Tensor, level: int) -> Tensor:
    """The rows [S, M] with flagged ones [S, M] bool as the policy has them from `level` on.

    Every slice starts at A x, and what is not flagged in it stays known. No noise is added: of a
    linear field the result is the mean of those with noise, which lie further from the truth.
    """
    rows = slices.rows.clone()
    for centre in flagged.any(1).nonzero()[:, 0].split(ROWS):
        value, inside, place = slices.around(centre)
        known = inside[..., None] & ~flagged[place]
        still, start = torch.zeros_like(value), 1 - level / LEVELS
        found = inpainted(policy, inside.float(), still, value, known, start)[:, slices.half]
        rows[centre] = torch.where(flagged[centre], found, rows[centre])
    return rows
