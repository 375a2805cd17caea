"""What algorithms share whose policy `algo.pulls` may hold (`anchors`)."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..envs.batch import Batch
from .anchors import Anchor, Anchors, Pull, Shown


@dataclass(eq=False)
class Pulled:
    """A policy that entries of `pulls` hold; `holds` says which kinds and rules there are.

    Args:
        pulls: What holds the policy, a list of {kind, coef, rule}: velocity or path to its start,
            data to recorded actions; the rule (const, scaled, dual, gated) says what coef depends
            on; empty: nothing.
    """

    holds = {}

    _: KW_ONLY
    pulls: list[dict[str, Any]]

    def hold(self, device: torch.device) -> None:
        """Reads the entries. Raises ValueError."""
        known: Mapping[str, Sequence[str]] = self.holds
        self.anchoring = Anchors(self.pulls, known, device) if self.pulls else None
        coef = getattr(self, "anchor_coef", 0.0)
        if "velocity" in known and coef > 0 and self.anchor("velocity") is not None:
            raise ValueError(
                f"algo.anchor_coef={coef:g} with an entry of kind velocity in algo.pulls: both "
                "hold the policy to that of the run's start; set algo.anchor_coef=0"
            )

    def anchor(self, kind: str) -> Anchor | None:
        """The entry of a kind."""
        return None if self.anchoring is None else self.anchoring.parts.get(kind)

    @property
    def to_start(self) -> bool:
        """Whether an entry holds the policy to that of the run's start."""
        return any(entry.get("kind") != "data" for entry in self.pulls)

    @property
    def renewing(self) -> bool:
        """Whether an entry replaces the policy that is held to."""
        parts = {} if self.anchoring is None else self.anchoring.parts
        return any(part.renewing for part in parts.values())

    @property
    def firm(self) -> float:
        """The sum of constant coefficients of velocities: what repulsion can count on."""
        part = self.anchor("velocity")
        return float(part.coef) if part is not None and part.rule == "const" else 0.0

    @property
    def learned(self) -> dict[str, Any]:
        """What belongs to the networks: what coefficients have come to."""
        parts = {} if self.anchoring is None else self.anchoring.parts
        learning = any({"coef", "share"} & part.state.keys() for part in parts.values())
        return {"anchoring": None} if learning else {}

    def among(self, members: Tensor, advantage: Tensor | None) -> Tensor | None:
        """How strongly each of the samples [...] is held, None: alike; a gate learns by it.

        members [E, ...]: values of the samples; advantage [...]: of -1 to 1.
        """
        part = self.anchor("velocity")
        if part is None:
            return None
        doubt = members.std(0, correction=0)
        if part.rule == "gated":
            part.watch(doubt)
        return part.rows(advantage, doubt)

    def drift(self, coef: float, base: Any, rows: Tensor | None = None) -> Pull:
        """The pull of velocities to a base: that of an entry, else with a constant coef."""
        part = self.anchor("velocity")
        if part is None:
            return Pull("drift", coef, base if coef > 0 else None)
        return Pull("drift", part.coef, base, rows)

    def to_data(self, shown: Shown | None, policy: Any) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The pull of recorded actions, [], and its metric; 0 without an entry."""
        part = self.anchor("data")
        if part is None or shown is None:
            return 0.0, {}
        error = shown.error(policy)
        return part.coef * error, {"policy/bc": error.detach()}

    def shown(
        self, policy: Any, batch: Batch, rows: int, generator: torch.Generator
    ) -> Shown | None:
        """The recorded ones of the first rows of a batch, where an entry holds the policy to them.

        All rows count where a batch does not tell recorded ones from others: then it has no others.
        """
        if self.anchor("data") is None:
            return None
        counts = None if batch.recorded is None else batch.recorded[:rows]
        return Shown.drawn(policy, batch.obs[:rows], batch.action[:rows], generator, counts)
