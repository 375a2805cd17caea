"""One-step flow Q-learning: gradients of Q through one jump, anchored by cloning jumps."""

from dataclasses import dataclass

from .onestep import OneStep


@dataclass(eq=False)
class OFQL(OneStep):
    """One-step flow Q-learning (arXiv:2508.13904): `algo=dql` with average velocities.

    Recorded actions are cloned by average velocities, and Q's gradient goes through one network
    call (`OneStep`). A jump is regressed on its derivative along the path, as in `algo=meanflow`,
    or on the mean of two half jumps of the averaged policy, as in `algo=shortcut` with 16 steps,
    which takes no derivative of the network (bootstrapped flow Q-learning, of the same authors). Of
    neither a public code was found, so eta is `algo=dql`'s.
    """
