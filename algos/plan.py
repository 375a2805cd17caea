"""Planning by a flow over recorded windows of states and actions."""

from dataclasses import dataclass

from .planning import Planning


@dataclass(eq=False)
class Plan(Planning):
    """Plans of states and actions, told the labels of their recorded windows (Diffuser,
    arXiv:2205.09991; Decision Diffuser, arXiv:2211.15657).
    """
