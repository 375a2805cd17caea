"""A clone that acts as it is asked by a label, by what a classifier says of its actions."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..envs.batch import Labelled
from ..errors import RheoError
from ..policies.candidates import sample
from ..policies.critics import QEnsemble
from ..policies.labelled import LabelledPolicy
from ..policies.nets import clone, lerp_
from ..ranges import Count, NonNegative, Positive, Rate
from . import adjoint, walks
from .contract import Algorithm
from .optim import adam, step
from .walks import Met, Sides, at


class Asked(nn.Module):
    """How likely actions earn one label, as a critic: log p(label | s, a), [1, ...].

    logits: obs [..., O], action [..., T, Da] -> [labels, ...].
    """

    def __init__(self, logits: nn.Module, label: int) -> None:
        super().__init__()
        self.logits, self.label = logits, label

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.logits(obs, action).log_softmax(0)[self.label, None]


@dataclass(eq=False)
class CTRL(Algorithm):
    """Conditioning a clone on a label by a classifier, CTRL (arXiv:2406.12120).

    In the first classifier_updates p(y | s, a) learns the labels of recorded chunks; a member of
    `critic` is the logit of a label. Then it rests, and the policy learns to act for every label:
    at recorded states labels are drawn evenly, and the clone that the run started from, `base`, is
    tilted to base(a | s) p(y | s, a)^kappa, for kappa = 1 the conditional of Bayes. The paper
    maximises E[log p(y | s, a)] less the divergence from the clone by gradients through a chain;
    adjoint matching (`walks`, arXiv:2409.08861) has that tilt as its optimum and needs none.

    What is deployed is the label of the policy (policy.label), which may change after training. The
    log probability of that label is the run's critic: a run that ends with classifier_updates has
    moved nothing, and its clone can be steered by it (steer=svdd). B batch, K steps, T chunk, Da
    action dimension.

    Raises ValueError for anything but velocities on the straight path, and for another number of
    networks than labels.

    Args:
        classifier_updates: Updates in which the classifier alone learns; then the policy does, and
            it not.
        kappa: How far the clone is tilted, as p(label | s, a)^kappa: 1 is the conditional law,
            larger asks more strongly, 0 leaves the clone.
        kernel: Noise of the walks: memoryless, as published; posterior, that of DDPM, exact for
            linear log probabilities in any number of steps.
        clip_gradient: Whether the classifier has no gradient where a walk ends outside the box;
            else the one at the box's edge.
        policy_lr: Adam learning rate of the policy.
        critic_lr: Adam learning rate of the classifier.
        ema_rate: Share by which the averaged copy that is deployed moves towards the policy per
            update; 1 deploys the policy itself.
        max_norm: Largest gradient norm of a step of the policy; a longer gradient is scaled down
            to it.
    """

    pure = ("classifier_loss", "tuned_loss")
    noisy_steps = True  # what is deployed has noise in its transitions, where policy.eta > 0

    policy: LabelledPolicy
    critic: QEnsemble
    generator: torch.Generator
    executed: int | None = None
    _: KW_ONLY
    classifier_updates: Count
    kappa: NonNegative
    kernel: Literal["memoryless", "posterior"]
    clip_gradient: bool
    policy_lr: Positive
    critic_lr: Positive
    ema_rate: Rate
    max_norm: Positive

    def __post_init__(self) -> None:
        walks.refuse(self.policy, self.kernel)
        if self.critic.members != self.policy.labels:
            raise ValueError(
                f"critic.members={self.critic.members}: the classifier has one network for each of "
                f"policy.labels={self.policy.labels}; leave critic.members out"
            )
        self.base, self.average = clone(self.policy), clone(self.policy)
        self.policy_opt = adam(self.policy.parameters(), self.policy_lr)
        self.critic_opt = adam(self.critic.parameters(), self.critic_lr)
        self.updates = 0

    def read(self, source: Any) -> None:
        """Raises RheoError for batches without labels, or with another number of them."""
        found = getattr(source, "labels", None)
        if not isinstance(found, int):  # those of plans are names
            raise RheoError(
                "source: CTRL learns from labels of recorded actions, and this one has none; leave "
                "source= out (source=labels), and set source.label"
            )
        if found != self.policy.labels:
            raise RheoError(
                f"source.labels={found}: the policy is asked by policy.labels="
                f"{self.policy.labels}; set policy.labels alone"
            )

    # ------------------------------------------------------------------ acting
    def act(self, obs: Tensor) -> Tensor:
        """A sample of the averaged policy, [N, T, Da]."""
        return self.deploy(obs, self.generator)

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the averaged policy for its label, [N, T, Da]."""
        return sample(self.average, None, obs, generator, eta=self.policy.eta)

    def action_critic(self) -> Asked:
        """The log probability of the deployed label."""
        return Asked(self.critic, self.policy.label)

    # ---------------------------------------------------------------- learning
    def update(self, batch: Labelled) -> dict[str, Tensor]:
        """Counts an update; one step of the classifier, or of the policy."""
        self.begin()
        return self.learn_from(batch, self.updates > self.classifier_updates)

    def begin(self) -> None:
        """The host's part of an update."""
        self.updates += 1

    def learn_from(self, batch: Labelled, tunes: bool = False) -> dict[str, Tensor]:
        """The device's part of an update in which the policy learns, or the classifier."""
        if not tunes:
            loss, metrics = self.classifier_loss(batch)
            step(self.critic_opt, loss)
            return metrics
        label = self.drawn(len(batch.obs), self.generator)
        met = self.meet(batch.obs, label)
        loss, drift = self.tuned_loss(batch.obs, label, met)
        norm = step(self.policy_opt, loss, self.max_norm)
        lerp_(self.average, self.policy, self.ema_rate)
        assert norm is not None
        told = {"policy/loss": loss.detach(), "policy/drift": drift}
        return told | {"policy/gradient_norm": norm}

    def drawn(self, rows: int, generator: torch.Generator) -> Tensor:
        """Labels that are asked for, each as often, [B]."""
        size, device = (rows,), generator.device
        return torch.randint(self.policy.labels, size, generator=generator, device=device)

    def classifier_loss(self, batch: Labelled) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the labels, [], and how many of them are the likeliest."""
        logits = self.critic(batch.obs, batch.action).mT  # [B, labels]
        loss = cross_entropy(logits, batch.label)
        right = (logits.argmax(1) == batch.label).to(logits.dtype).mean()
        return loss, {"critic/loss": loss.detach(), "critic/accuracy": right}

    def height(self, obs: Tensor, action: Tensor, label: Tensor) -> Tensor:
        """log p(y | s, a) of labels [B], [B]."""
        return self.critic(obs, action).log_softmax(0).gather(0, label[None])[0]

    @torch.no_grad()
    def meet(self, obs: Tensor, label: Tensor) -> Met:
        """What the policy is matched to at states [B, O] for labels [B]."""
        base = at(self.base, self.base.features(obs))
        sides = Sides(self.policy, self.field(obs, label), base, self.steps())

        def height(action: Tensor) -> Tensor:
            return self.height(obs, action, label)

        def pull(x: Tensor) -> Tensor:
            found = walks.slope(self.policy, x, height, self.clip_gradient, self.executed)
            return -self.kappa * found

        return walks.meet(sides, len(obs), self.generator, pull)

    def field(self, obs: Tensor, label: Tensor) -> adjoint.FieldFn:
        """The policy's velocities at states [B, O] for labels [B]."""
        return at(self.policy, self.policy.told(obs, label))

    def steps(self) -> adjoint.Kernel:
        """The steps of walks, on the policy's own grid."""
        return adjoint.KERNELS[self.kernel](self.policy.times())

    def tuned_loss(self, obs: Tensor, label: Tensor, met: Met) -> tuple[Tensor, Tensor]:
        """Matching of the tuned field, [], and its distance to the clone [] (`walks.matched`)."""
        return walks.matched(self.steps(), self.field(obs, label), met)

    @torch.no_grad()
    def validate(self, batch: Labelled, generator: torch.Generator) -> dict[str, Tensor]:
        """Of held-out rows the classifier's loss and share of right labels; how likely a label that
        is asked for is earned, by the classifier, by the policy's and by the clone's actions.
        """
        loss, told = self.classifier_loss(batch)
        label = self.drawn(len(batch.obs), generator)
        noise = self.average.noise(len(batch.obs), generator)
        point = self.average.integrate(self.average.told(batch.obs, label), noise)
        sides = self.average.to_action(point), self.base.act(batch.obs, noise)
        asked, plain = (self.height(batch.obs, a, label).exp().mean() for a in sides)
        values = {"val/loss": loss, "val/accuracy": told["critic/accuracy"]}
        return values | {"val/asked": asked, "val/asked_base": plain}
