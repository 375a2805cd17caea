"""A policy that is asked by label: silent at first, and one row at a time its own."""

from typing import Any

import pytest
import torch
from torch import nn

from rheo.policies.labelled import LabelledPolicy
from rheo.policies.nets import MLP
from rheo.policies.normalize import Normalizer

KEPT: dict[str, Any] = {
    "path": "linear", "levels": None, "prediction": "v", "steps": 4, "sampler": "euler",
    "eta": 0.0, "clip_x": False, "clip_a": False, "squash": "clip",
}  # fmt: skip


@pytest.fixture
def labelled():
    """Makes policies over one small network, the plain flow of which comes first."""
    torch.manual_seed(0)
    net = MLP(3, 2, 2, width=8, depth=1, encoder_depth=1, activation="relu")
    nn.init.normal_(net.outlet.weight)

    def make(label=1):
        norms = {"obs_norm": Normalizer(3, kind="none"), "action_norm": Normalizer(2, kind="none")}
        return LabelledPolicy(net, labels=3, label=label, **KEPT, **norms)

    return make


def test_labels_say_nothing_at_first_and_then_each_its_own(labelled):
    policy = labelled()
    obs, noise = torch.randn(4, 3), torch.randn(4, 2, 2)
    plain = policy.net.encode(obs)
    assert torch.equal(policy.features(obs), plain)
    nn.init.normal_(policy.vectors)
    label = torch.tensor([2, 0, 1, 1])
    told = policy.told(obs, label)
    for row, each in enumerate(label.tolist()):
        alone = labelled(each)
        alone.vectors = policy.vectors
        torch.testing.assert_close(told[row], alone.features(obs)[row])
        acted = alone.to_action(alone.integrate(told, noise))[row]
        torch.testing.assert_close(alone.act(obs, noise)[row], acted)
    assert not torch.allclose(told, plain)


def test_a_label_that_is_not_there_is_refused(labelled):
    with pytest.raises(ValueError, match=r"policy.label=3: there are 3 labels, 0 to 2"):
        labelled(3)
