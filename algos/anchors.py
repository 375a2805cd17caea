"""Anchors: what a policy is held to while something else pushes it, and how strongly.

B batch, K actions of a state, J (time, noise) pairs, S denoising steps, T chunk, Da action
dimension.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ranks
from ..errors import nearest
from ..ranges import Range
from .losses import Pairs, matching_draws
from .returns import constrain

RULES = {  # of a coefficient, with the keys that it needs
    "const": (),
    "scaled": (),
    "dual": ("threshold", "rate"),
    "gated": ("share",),
}
NAMES = {"velocity": "drift", "path": "path_kl", "data": "bc"}  # of a kind's distance: policy/NAME
RENEWS = ("limit", "every")  # keys of kinds that hold to a policy, which may be replaced
LOW, HIGH = 0.02, 0.2  # shares of the samples that a gate holds at least and at most
CHANGE = 0.1  # of a gate's share, where doubt leaves what it was lately
LEAST = 1e-2  # distance of a sample to a prediction by which `dmd` divides
RECENT = 20  # measurements of doubt that a gate remembers
RANGES = {
    **{key: Range(gt=0) for key in ("coef", "threshold", "rate", "limit")},
    "share": Range(ge=LOW, le=HIGH),
    "every": Range(ge=1),
}


class Pull(NamedTuple):
    """A policy that another is held to: coef times the squared distance of their velocities."""

    name: str
    coef: float | Tensor
    policy: Any  # None: no such pull
    rows: Tensor | None = None  # [...] weights of the samples, whose pairs are [..., J]; None: 1


def held(
    points: Pairs, obs: Tensor, t: Tensor, pulls: Sequence[Pull], weight: Tensor | float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum of the pulls at the points, [], and each distance by name ("policy/NAME").

    Distances are of the steps that the points compare: where errors push, pulls hold. t [..., J] as
    in `losses.pairs`; weight broadcasts over [..., J]. Distances are told of all samples, also
    where a pull weighs them.
    """
    total, metrics = points.velocity.new_zeros(()), {}
    for name, coef, policy, rows in pulls:
        if policy is not None:
            gap = apart(points, obs, t, policy) * weight
            distance = gap.mean()
            total = total + coef * (distance if rows is None else (gap * rows[..., None]).mean())
            metrics[f"policy/{name}"] = distance.detach()
    return total, metrics


def apart(points: Pairs, obs: Tensor, t: Tensor, policy: Any) -> Tensor:
    """Squared distance [..., J] of the velocities at the points from another policy's there."""
    with torch.no_grad():
        there = policy.velocity(points.x, t, policy.features(obs))
        there = there[..., : points.velocity.shape[-2], :]
    return (points.velocity - there).square().mean((-1, -2))


def unlike(policy: Any, base: Any, obs: Tensor, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Squared distance [..., T, Da] of two policies' predictions at x = A a + B noise.

    In the form that the first predicts, whose errors are even over times: a velocity made of a
    noise is divided by the little of the action that x holds at early ones. obs [B, O], action and
    noise [B, ..., T, Da], t [B, ...].
    """
    a, c = policy.to_latent(action), policy.path.coefficients(t).over_chunk()
    x, form = c.a * a + c.b * noise, policy.prediction
    own = getattr(policy.pred(x, t, policy.features(obs)), form)
    with torch.no_grad():
        theirs = getattr(base.pred(x, t, base.features(obs)), form)
    return (own - theirs).square()


def strayed(policy: Any, base: Any, obs: Tensor, noise: Tensor, executed: int | None) -> Tensor:
    """Mean squared distance [] of two policies' actions from the same noise [B, T, Da].

    Of the executed steps, before the box cuts them: beyond it a gradient has to lead back.
    """
    own = policy.act(obs, noise, clip=False)
    with torch.no_grad():
        theirs = base.act(obs, noise, clip=False)
    return (own - theirs)[:, :executed].square().mean()


def dmd(
    point: Tensor, obs: Tensor, real: Any, fake: Any, noise: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Distribution matching (arXiv:2311.18828, eq. 7): a loss [] and the distance it lowers, [].

    Into the samples `point` [B, T, Da] of a policy, in its normalised units, it sends w (score_fake
    - score_real)(x_t) at x_t = A point + B noise, the gradient of KL(samples || real) there; `fake`
    is a field of the samples, `real` one of the law that they should have, obs [B, O], t [B]. With
    the published w that is (a_fake - a_real) / mean |point - a_real|, of the actions that either
    field predicts at x_t, whose score is (A a - x_t) / B^2. The distance is the mean of (a_fake -
    a_real)^2.
    """
    c = real.path.coefficients(t).over_chunk()
    with torch.no_grad():
        x = c.a * point + c.b * noise
        theirs, own = (each.pred(x, t, each.features(obs)).a for each in (real, fake))
        size = (point - theirs).abs().mean((-1, -2), keepdim=True).clamp_min(LEAST)
        pull = (own - theirs) / size
    return (pull * point).mean(), (own - theirs).square().mean()


def scaled(advantage: Tensor, limit: float) -> Tensor:
    """(1 + A / limit) / 2, of the shape of the advantages A in [-limit, limit].

    Good actions are held, the worst not at all: what is unlearned need not be kept.
    """
    return (1 + advantage / limit) / 2


def path_kl(mean: Tensor, base: Tensor, std: Tensor) -> Tensor:
    """Divergence in nats of Gaussian transitions from others with the same std, elementwise.

    (m - m_base)^2 / (2 std^2). The std gets no gradient: to inflate the noise is not to come back.
    """
    return ((mean - base.detach()) / std.detach()).square() / 2


def most(doubt: Tensor, share: Tensor) -> Tensor:
    """Which of the samples [...] are the share [] with the largest doubt, bool: round(n share)."""
    order = doubt.flatten().argsort(descending=True, stable=True)
    count = (order.numel() * share).round()
    chosen = torch.empty_like(order, dtype=torch.bool)
    chosen[order] = torch.arange(len(order), device=order.device) < count
    return chosen.view(doubt.shape)


def diversity(action: Tensor) -> Tensor:
    """How far each action of a group lies from the nearest other one, [R, K], over the mean.

    action [R, K, ...]. Of mean 1 in every group whose actions are not all the same, and 0 for an
    action that is there twice (arXiv:2512.24138).
    """
    flat = action.flatten(2)
    gap = (flat[:, :, None] - flat[:, None]).square().sum(-1).sqrt()  # exactly 0 for equal ones
    own = torch.eye(flat.shape[1], dtype=torch.bool, device=flat.device)
    near = gap.masked_fill(own, torch.inf).amin(-1)
    return near / near.mean(1, keepdim=True).clamp_min(1e-8)


def varied(advantage: Tensor, action: Tensor) -> Tensor:
    """Advantages [R, K] of which the positive ones are multiplied by the action's `diversity`."""
    return torch.where(advantage > 0, advantage * diversity(action), advantage)


class Shown(NamedTuple):
    """Recorded actions that a policy is held to, with the randomness of matching them."""

    obs: Tensor  # [B, O]
    action: Tensor  # [B, T, Da]
    noise: Tensor  # [B, T, Da]
    t: Tensor  # [B]
    counts: Tensor | None = None  # [B] bool: which rows are recorded ones; None: all

    @classmethod
    def drawn(
        cls,
        policy: Any,
        obs: Tensor,
        action: Tensor,
        generator: torch.Generator,
        counts: Tensor | None = None,
    ) -> "Shown":
        """Recorded actions with fresh noises and times."""
        return cls(obs, action, *matching_draws(policy, len(obs), generator), counts)

    def error(self, policy: Any) -> Tensor:
        """The matching error [] of whole plans: cloning, the mean over the recorded rows."""
        error = policy.match(self.obs, self.action, self.noise, self.t, space=policy.prediction)
        if self.counts is None:
            return error.mean()
        return (error * self.counts).sum() / self.counts.sum().clamp_min(1)


class Anchor:
    """What an entry of `algo.pulls` says, and what its coefficient has come to.

    "const" is coef, "scaled" coef (1 + A / limit) / 2 of a sample with advantage A. "dual" starts
    at coef and rises while the distance is above threshold (arXiv:2405.20555's step). "gated" holds
    the share of samples that the critics disagree on most, and no others; as in the public code of
    arXiv:2512.24138 the share grows by a tenth where their mean disagreement is above all of the
    last RECENT ones and falls by a tenth where it is below. limit, every: the policy that is held
    to is replaced by the current one where the distance passes limit, and after so many of its
    steps (off policy) or rollouts.
    """

    def __init__(self, entry: Mapping[str, Any], device: torch.device) -> None:
        self.kind, self.rule = entry["kind"], entry.get("rule", "const")
        self.threshold, self.rate = entry.get("threshold", 0.0), entry.get("rate", 0.0)
        self.limit, self.every = entry.get("limit"), entry.get("every")
        self.coef = torch.tensor(float(entry["coef"]), device=device)  # of all samples
        self.state: dict[str, Tensor] = {}  # what changes in a run
        if self.rule == "dual":
            self.state["coef"] = self.coef
        if self.rule == "gated":
            self.state["share"] = torch.tensor(float(entry["share"]), device=device)
            self.state["recent"] = torch.zeros(RECENT, device=device)  # doubts
            self.state["doubts"] = torch.zeros((), device=device)  # how many there were
        if self.renewing:
            self.state["age"] = torch.zeros((), device=device)  # of the policy that is held to

    @property
    def renewing(self) -> bool:
        """Whether it replaces the policy that is held to."""
        return self.limit is not None or self.every is not None

    def rows(self, advantage: Tensor | None, doubt: Tensor | None) -> Tensor | None:
        """Weights of the samples [...], None: all 1.

        advantage: of -1 to 1, where samples have one; doubt: the critics' deviation.
        """
        if self.rule == "scaled":
            assert advantage is not None
            return scaled(advantage, 1.0)
        if self.rule == "gated":
            assert doubt is not None
            return most(doubt, self.state["share"]).to(doubt.dtype)
        return None

    def watch(self, doubt: Tensor) -> None:
        """Moves the share of a gate, by the mean doubt [] over the samples of a step."""
        measured, recent = ranks.mean(doubt.mean())[0], self.state["recent"]
        recent.copy_(torch.where(self.state["doubts"] == 0, measured, recent))
        change = (measured > recent.amax()).float() - (measured < recent.amin()).float()
        self.state["share"].mul_(1 + CHANGE * change).clamp_(LOW, HIGH)
        recent.copy_(torch.cat([recent[1:], measured[None]]))
        self.state["doubts"].add_(1)

    def learn(self, distance: Tensor) -> None:
        """Moves a dual coefficient by the distance [] of a step."""
        if self.rule == "dual":
            constrain(self.coef, distance, self.threshold, self.rate)

    @torch.no_grad()
    def renew(self, distance: Tensor, base: Any, policy: Any) -> Tensor:
        """Replaces the base by the policy where it is time. Returns whether it was, 0 or 1, []."""
        self.state["age"].add_(1)
        due = torch.zeros_like(self.state["age"], dtype=torch.bool)
        if self.limit is not None:
            due |= ranks.mean(distance)[0] > self.limit
        if self.every is not None:
            due |= self.state["age"] >= self.every
        self.state["age"].mul_(~due)
        for mine, theirs in zip(base.parameters(), policy.parameters(), strict=True):
            mine.copy_(torch.where(due, theirs, mine))
        return due.float()


class Anchors:
    """The entries of `algo.pulls` by kind. Raises ValueError for what cannot be meant.

    known: the kinds that an algorithm has, each with the rules for its coefficient.
    """

    def __init__(
        self,
        asked: Sequence[Mapping[str, Any]],
        known: Mapping[str, Sequence[str]],
        device: torch.device,
    ) -> None:
        self.parts: dict[str, Anchor] = {}
        for index, entry in enumerate(asked):
            place = f"algo.pulls[{index}]"
            refuse(entry, place, known)
            if entry["kind"] in self.parts:
                raise ValueError(f"{place}.kind={entry['kind']}: is there twice; leave one")
            self.parts[entry["kind"]] = Anchor(entry, device)

    def learn(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Moves dual coefficients by the distances that a step told; metrics of the rules."""
        told = {}
        for kind, part in self.parts.items():
            name = f"policy/{NAMES[kind]}"
            if name in metrics:
                part.learn(metrics[name])
            if part.rule == "dual":
                told[f"{name}_coef"] = part.coef.clone()
            if part.rule == "gated":
                told[f"{name}_share"] = part.state["share"].clone()
        return told

    def renew(self, metrics: dict[str, Tensor], base: Any, policy: Any) -> dict[str, Tensor]:
        """Replaces the base where an entry asks for it; whether it was, where one may."""
        told = {}
        for kind, part in self.parts.items():
            name = f"policy/{NAMES[kind]}"
            if part.renewing and name in metrics:
                told["policy/renewed"] = part.renew(metrics[name], base, policy)
        return told

    def carry(self, state: Mapping[str, Any]) -> None:
        """Takes over what coefficients of another run have come to, where both learn them."""
        for kind, part in self.parts.items():
            for key in {"coef", "share"} & part.state.keys() & state.get(kind, {}).keys():
                part.state[key].copy_(state[kind][key])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What the entries have come to."""
        return {
            kind: {key: value.clone() for key, value in part.state.items()}
            for kind, part in self.parts.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for kind, part in self.parts.items():
            for key, value in part.state.items():
                value.copy_(state[kind][key])


def refuse(entry: Any, place: str, known: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for an entry of `algo.pulls` that is none, or that lacks what it needs."""
    kind = entry.get("kind")
    if kind not in known:
        said = ": missing" if kind is None else f"={kind}: not here"
        raise ValueError(f"{place}.kind{said}; this algorithm has {', '.join(known)}")
    rule = entry.get("rule", "const")
    if rule not in known[kind]:
        raise ValueError(f"{place}.rule={rule}: of kind {kind} there are {', '.join(known[kind])}")
    may = ("coef", *RULES[rule], *(() if kind == "data" else RENEWS))
    for key in entry:
        if key not in ("kind", "rule", *may):
            told = f"kind {kind} with rule {rule} takes {', '.join(may)}"
            raise ValueError(f"{place}.{key}: {told}{nearest(str(key), may)}")
    for key in ("coef", *RULES[rule]):
        if key not in entry:
            raise ValueError(f"{place}.{key}: missing; kind {kind} with rule {rule} needs it")
    for key in [key for key in may if key in entry]:
        refuse_number(entry[key], f"{place}.{key}", whole=key == "every", range=RANGES[key])


def refuse_number(value: Any, place: str, whole: bool, range: Range) -> None:
    """Raises ValueError for what is no number, or one out of range."""
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
        raise ValueError(f"{place}={value}: must be {'a whole' if whole else 'a finite'} number")
    problem = range.problem(value)
    if problem:
        raise ValueError(f"{place}={value:g}: must be {problem}")
