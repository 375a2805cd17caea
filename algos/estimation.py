"""How reverse flow matching estimates a velocity: the keys of it, and which do not go together."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from ..ranges import Count, Natural, NonNegative, Positive, Rate, Share

log = logging.getLogger("rheo")


@dataclass(eq=False, kw_only=True)
class Estimation:
    """How a velocity towards exp(Q / T) is estimated; see `Reverse`. M start candidates.

    The gradient alone is only right without a box and refuses one; Stein controls from dQ/da vanish
    on the box's walls. `estimators.published_mean` has the control of the authors' code, without a
    box. Walls further out than 1 (actions are still clipped at 1, and so is what Q is asked for)
    put the mass of what lies beyond an action's limit at the limit: a regression comes to a corner
    only slowly from inside. "data" and "noise" weigh the squared error by (B / (A B' - A' B))^2 and
    (A / (A B' - A' B))^2.

    Args:
        particles: Noises drawn per row to estimate the target velocity: more lower its variance. At
            least 2.
        estimator: What estimates the velocity: noise uses Q alone, gradient dQ/da alone
            (support=tanh only), combined Q with dQ/da as a control variate.
        support: Where the target density lives: box, between walls around the actions, or tanh,
            before a tanh without walls (with policy.squash=tanh).
        proposal: Where particles are drawn: truncated, from the prior alone, self, a share of them
            around the policy's own prediction, or annealed, from the prior and moved towards the
            posterior along dQ/da.
        self_share: Share of particles that proposal=self draws around the policy's own prediction.
        self_scale: Width of the draws of proposal=self around the policy's prediction, in standard
            deviations of its posterior.
        spread_floor: Least width of the policy that proposal=self and annealed assume, in
            normalised action units.
        anneal_moves: Langevin moves of every particle with proposal=annealed: each asks the critic
            once more for Q and dQ/da; 0 moves none.
        anneal_step: Length of a move of proposal=annealed, as the share of the way to a draw that
            is independent where the posterior is a Gaussian of the policy's width: lower it
            where rfm/accepted is low.
        ridge: Penalty of the regression that fits the control variates of estimator=combined:
            larger trusts them less.
        replay_share: Share of the rows whose noisy point starts from a given action of the batch;
            the others start from the policy's own.
        weighting: Weight of the velocity error: uniform; ramp, less before t = 0.2; data or noise,
            as an error of the predicted action or noise.
        control: Control variates of estimator=combined: ridge regresses all of them, published
            takes the authors' one coefficient per dimension (support=tanh only).
        walls: Place of the density's walls with support=box, in units of the action limits, at
            least 1: further out reaches limits sooner.
        start_candidates: Own samples per row of which one is chosen by Q for the noisy point to
            start from; 1: no choice.
        choice_temperature: Temperature, as a multiple of the density's, of the softmax that draws
            one of several samples by Q; 0 takes the highest.
    """

    particles: Count
    estimator: Literal["noise", "gradient", "combined"]
    support: Literal["box", "tanh"]
    proposal: Literal["truncated", "self", "annealed"]
    self_share: Share
    self_scale: Positive
    spread_floor: Positive
    anneal_moves: Natural
    anneal_step: Rate
    ridge: NonNegative
    replay_share: Share
    weighting: Literal["ramp", "data", "noise", "uniform"]
    control: Literal["ridge", "published"]
    walls: Positive
    start_candidates: Count
    choice_temperature: NonNegative


def refuse(values: Estimation, policy: Any, key: str) -> None:
    """Raises ValueError for values that do not fit each other or the policy, says unused ones.

    `key` is where they stand in the configuration.
    """
    squash, kind = policy.squash, policy.action_norm.kind
    box = values.support == "box"
    if values.estimator == "gradient" and box:
        raise ValueError(
            f"{key}.estimator=gradient is biased on a box: the walls carry a flux that it "
            "ignores; use estimator=combined (safe controls), noise, or support=tanh"
        )
    if (values.support == "tanh") != (squash == "tanh"):
        raise ValueError(
            f"{key}.support={values.support} does not fit policy.squash={squash}: "
            "set policy.squash=tanh for support=tanh, or policy.squash=clip for support=box "
            "(algo=rfm_box)"
        )
    if squash == "tanh" and kind != "none":
        raise ValueError(
            f"policy.action_norm.kind={kind} with {key}.support=tanh: the tanh ends at the "
            "range of the data, and no better action beyond it could be found; set "
            f"policy.action_norm.kind=none, or {key}.support=box policy.squash=clip"
        )
    if values.particles < 2:
        raise ValueError(
            f"{key}.particles={values.particles}: importance sampling needs at least 2"
        )
    if values.walls < 1:
        raise ValueError(f"{key}.walls={values.walls}: below 1 no action could reach its limits")
    if not box and values.walls != 1:
        log.warning("%s.walls=%g: not used, %s.support=tanh has none", key, values.walls, key)
    if values.control == "published" and values.estimator != "combined":
        raise ValueError(
            f"{key}.control=published with {key}.estimator={values.estimator}: only "
            f"estimator=combined has controls; set it, or {key}.control=ridge"
        )
    if values.control == "published" and box:
        raise ValueError(
            f"{key}.control=published with {key}.support=box: its control is not zero-mean "
            f"between walls; use {key}.control=ridge or {key}.support=tanh"
        )
    if values.proposal == "annealed" and values.anneal_moves == 0:
        log.warning(
            "%s.anneal_moves=0: particles stay where %s.proposal=truncated draws them", key, key
        )
