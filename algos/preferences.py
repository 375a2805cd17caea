"""Losses over groups of actions at one state: preferences and regression of log ratios.

A group is K actions of the SAME state with scores r [B, K] and log ratios l [B, K] to a reference
policy. With exact log ratios the regressions have the minimum pi ~ pi_ref exp(r / beta), whatever
is added to the scores of a state. Pure functions.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Labels = Literal["hard", "drawn"]
MAPO_RATE = 0.5  # c of the released code of arXiv:2406.06424
MAPO_STEPS = 1000.0  # its number of diffusion steps, which scales the margin
MAPO_WEIGHT = 0.1  # its weight of the margin


def centred(log_ratio: Tensor, score: Tensor, beta: float) -> Tensor:
    """Mean of (beta (l - mean_K l) - (r - mean_K r))^2, [].

    The mean over all pairs of (beta (l_i - l_j) - (r_i - r_j))^2 (PRDP, arXiv:2402.08714) is
    2 K / (K - 1) times this one (CRD).
    """
    gap = beta * log_ratio - score
    return (gap - gap.mean(1, keepdim=True)).square().mean()


def listwise(log_ratio: Tensor, score: Tensor, beta: float) -> Tensor:
    """Cross entropy of softmax(r) and softmax(beta l) over the group, [] (GDRO)."""
    return -(score.softmax(1) * (beta * log_ratio).log_softmax(1)).sum(1).mean()


def preferred(score: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    """Which of two is the better one, for every pair i, j of a group: +1, -1 or 0, [B, K, K].

    "hard": the larger score, 0 for equal ones. "drawn": i with the probability sigmoid(r_i - r_j)
    of Bradley and Terry, under which alone a preference loss has the tilt as its minimum.
    Antisymmetric in i and j.
    """
    gap = score[:, :, None] - score[:, None, :]
    if labels == "hard":
        return gap.sign()
    drawn = torch.rand(gap.shape, generator=generator, device=gap.device)
    sign = torch.where(drawn < gap.sigmoid(), 1.0, -1.0).triu(1)
    return sign - sign.mT


def agreement(value: Tensor, sign: Tensor) -> Tensor:
    """The share of pairs with a better one in which that one's value [B, K] is the larger, [].

    Equal values are half right; sign [B, K, K] of `preferred`.
    """
    right = (1 + sign * (value[:, :, None] - value[:, None, :]).sign()) / 2
    return (right * sign.abs()).sum() / sign.abs().sum().clamp_min(1.0)


def bradley_terry(log_ratio: Tensor, sign: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (l_winner - l_loser)), mean over the pairs that have a winner, [].

    The loss of arXiv:2311.12908 (Diffusion-DPO) and, one denoising step at a time, of
    arXiv:2311.13231 (D3PO): log_ratio [B, K] or [B, K, steps]; sign [B, K, K] of `preferred`.
    """
    gap = log_ratio[:, :, None] - log_ratio[:, None, :]
    sign = sign.reshape(*sign.shape, *[1] * (gap.ndim - sign.ndim)).expand_as(gap)
    loss = -logsigmoid(beta * sign * gap) * sign.abs()
    return loss.sum() / sign.abs().sum().clamp_min(1.0)


def kto(log_ratio: Tensor, score: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta (l - z)) of good actions and 1 - sigmoid(beta (z - l)) of bad ones, [].

    Good and bad: above and below the mean of their group; z is the batch's mean of l, held fixed
    (arXiv:2402.01306). Both saturate: without an anchor all mass goes to the good half.
    """
    sign = (score - score.mean(1, keepdim=True)).sign()
    loss = (1 - (beta * sign * (log_ratio - log_ratio.mean().detach())).sigmoid()) * sign.abs()
    return loss.sum() / sign.abs().sum().clamp_min(1.0)


def odds(error: Tensor) -> Tensor:
    """f(L) = c L / (e^(c L) - 1) of matching errors L >= 0: 1 at 0, slope -c / 2 there, falling."""
    scaled = MAPO_RATE * error
    safe = scaled.clamp_min(1e-4)
    return torch.where(scaled < 1e-4, 1 - scaled / 2, safe / torch.expm1(safe))


def mapo(error: Tensor, sign: Tensor) -> Tensor:
    """L_winner - w log sigmoid(S (f(L_winner) - f(L_loser))) over pairs, [] (arXiv:2406.06424).

    Without a reference: error [B, K] are matching errors; sign [B, K, K] of `preferred`.
    """
    f = odds(error)
    margin = logsigmoid(MAPO_STEPS * (f[:, :, None] - f[:, None, :]))
    won = (sign > 0).to(error.dtype)
    loss = (error[:, :, None] - MAPO_WEIGHT * margin) * won
    return loss.sum() / won.sum().clamp_min(1.0)
