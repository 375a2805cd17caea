"""LabelledPolicy: a flow that is asked for a label beside what it observes."""

from typing import Any

import torch
from torch import Tensor, nn

from ..ranges import Count, Natural
from .flow import FlowPolicy
from .guidance import code_width
from .nets import Net


class LabelledPolicy(FlowPolicy):
    """A flow or diffusion policy over actions that were asked for by a label, one of several.

    A label moves the encoded observation by a learned vector, zero at first: then every label acts
    as the plain flow whose weights these are. What is sampled, scored and matched is the field of
    the label that is deployed; `told` encodes observations with labels of their own.

    Args:
        labels: How many labels there are, numbered from 0.
        label: Label that deployed actions are asked for, of 0 to labels - 1.
    """

    def __init__(self, net: Net, *, labels: Count, label: Natural, **kept: Any) -> None:
        if not 0 <= label < labels:
            raise ValueError(
                f"policy.label={label}: there are {labels} labels, 0 to {labels - 1} "
                "(policy.labels)"
            )
        super().__init__(net, **kept)
        self.label = label
        self.vectors = nn.Parameter(torch.zeros(labels, code_width(net)))

    @property
    def labels(self) -> int:
        """How many labels there are."""
        return len(self.vectors)

    def features(self, obs: Tensor) -> Tensor:
        """Encoded observations [..., W] under the label that is deployed."""
        return super().features(obs) + self.vectors[self.label]

    def told(self, obs: Tensor, label: Tensor) -> Tensor:
        """Encoded observations [..., O] under labels [...] of their own, [..., W]."""
        return super().features(obs) + self.vectors[label]
