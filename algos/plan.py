"""Planning by a flow over recorded windows of states and actions."""

from dataclasses import dataclass
from typing import Any

from ..errors import RheoError
from .planning import Planning


@dataclass(eq=False)
class Plan(Planning):
    """Plans of states and actions, told the labels of their recorded windows (Diffuser,
    arXiv:2205.09991; Decision Diffuser, arXiv:2211.15657).
    """

    def read(self, source: Any) -> None:
        """As `Planning.read`; and raises RheoError for comparisons, which teach nothing here."""
        super().read(source)
        if source.judged is not None:
            raise RheoError(
                f"source.judged={source.judged}: comparisons are learned from by algo=align; "
                "algo=plan tells plans what labels are measured by"
            )
