"""A gate: an iteration of a policy counts if fitted Q evaluation says that it is worth more.

B batch, K actions of a state, N states where episodes begin, T chunk, Da action dimension.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from .. import ranks
from ..envs.batch import Batch
from ..policies.candidates import candidate_noise, sample
from ..policies.nets import clone, lerp_
from ..ranges import Count, Natural, NonNegative
from .fitted import answers, fitted_loss, start_values
from .matching import Averaged
from .optim import adam, restart, step

Phase = Literal["first", "tune", "judge"]


@dataclass(eq=False)
class Gated(Averaged):
    """Iterations of a policy, of which only those that are worth more are deployed and go on.

    After first_updates an iteration is tune_updates in which the policy learns, and judge_updates
    in which it rests. Then its average is on trial: its critics and those of the accepted policy
    learn what either does at the same states from the same noise (`fitted.fitted_loss`), so that
    their difference has little of the noise of both. Where held-out episodes begin, the trial has
    to be worth more than the accepted policy by the share `margin` of that one's value: then it is
    accepted, else dropped. Every iteration begins at the accepted policy, with a fresh optimiser.

    Args:
        first_updates: Updates before the first iteration, in which critics alone learn.
        tune_updates: Updates of an iteration in which the policy learns.
        judge_updates: Updates of an iteration in which the policy rests and is judged.
        judge_samples: Actions at a state, of either policy, whose mean value is backed up.
        margin: Share of the accepted policy's value by which a new one has to be worth more.
    """

    needs_starts = True
    deploys = "accepted"

    _: KW_ONLY
    first_updates: Natural
    tune_updates: Count
    judge_updates: Count
    judge_samples: Count
    margin: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        self.accepted = clone(self.policy)
        self.judge, self.judge_target = clone(self.critic, frozen=False), clone(self.critic)
        self.rival, self.rival_target = clone(self.critic, frozen=False), clone(self.critic)
        self.judge_opt = adam(self.judge.parameters(), self.critic_lr)
        self.rival_opt = adam(self.rival.parameters(), self.critic_lr)
        self.iterations = self.passed = 0  # that were judged, that were accepted

    def deployed(self) -> object:
        """The accepted policy."""
        return self.accepted

    def act(self, obs: Tensor) -> Tensor:
        """A sample of the accepted policy, [N, T, Da]."""
        return self.deploy(obs, self.generator)

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the accepted policy, [N, T, Da]."""
        return sample(self.accepted, self.critic, obs, generator)

    # ---- an iteration ----------------------------------------------------------------------

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Counts an update, and learns what it is the turn of; a verdict ends an iteration."""
        self.begin()
        place = self.place()
        if place == 0:
            self.go_on_from_accepted()
        if place == self.tune_updates:
            self.even_rivals()
        phase: Phase = "first" if place < 0 else "tune" if place < self.tune_updates else "judge"
        metrics = self.learn_from(batch, phase)
        last = place + 1 == self.tune_updates + self.judge_updates
        return metrics | self.decide() if last else metrics

    def learn_from(self, batch: Batch, phase: Phase = "first") -> dict[str, Tensor]:
        """The device's part of an update in which it is the turn of a phase."""
        raise NotImplementedError

    def place(self) -> int:
        """Which update of its iteration this one is, from 0 on; below 0 before the first one."""
        gone = self.updates - 1 - self.first_updates
        return gone % (self.tune_updates + self.judge_updates) if gone >= 0 else -1

    @torch.no_grad()
    def go_on_from_accepted(self) -> None:
        """Lets all that follows the policy begin at the accepted one."""
        for part in (self.policy, self.average, *self.anchored()):
            lerp_(part, self.accepted, 1.0)
        restart(self.policy_opt)

    def anchored(self) -> list[torch.nn.Module]:
        """Copies that the policy is held to, which go on with the accepted one."""
        return [part for name in self.anchors if (part := vars(self)[name]) is not None]

    def even_rivals(self) -> None:
        """Lets both policies' critics go on from the same weights and steps."""
        for mine, theirs in ((self.rival, self.judge), (self.rival_target, self.judge_target)):
            mine.load_state_dict(theirs.state_dict())
        restart(self.judge_opt)
        restart(self.rival_opt)

    def learn_judges(self, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        """A step of the accepted policy's critics, and of those of the one on trial."""
        count, generator = self.judge_samples, self.generator
        noise = candidate_noise(self.policy, len(batch.obs), count, generator)
        ahead = answers(self.accepted, batch.next_obs, noise, generator)
        loss, _ = fitted_loss(self.judge, self.judge_target, batch, ahead)
        step(self.judge_opt, loss)
        lerp_(self.judge_target, self.judge, self.target_rate)
        metrics = {"gate/loss": loss.detach()}
        if phase == "judge":
            ahead = answers(self.average, batch.next_obs, noise, generator)
            loss, _ = fitted_loss(self.rival, self.rival_target, batch, ahead)
            step(self.rival_opt, loss)
            lerp_(self.rival_target, self.rival, self.target_rate)
            metrics["gate/trial_loss"] = loss.detach()
        return metrics

    @torch.no_grad()
    def decide(self) -> dict[str, Tensor]:
        """Accepts the policy on trial if it is worth enough more; metrics of the verdict."""
        assert self.starts is not None
        obs = self.starts()
        noise = candidate_noise(self.policy, len(obs), self.judge_samples, self.generator)
        pairs = ((self.judge, self.accepted), (self.rival, self.average))
        means = [
            start_values(critic, obs, answers(policy, obs, noise, self.generator)).mean()
            for critic, policy in pairs
        ]
        now, trial = ranks.mean(torch.stack(means))[0]
        passes = bool(trial - now > self.margin * now.abs())
        self.iterations, self.passed = self.iterations + 1, self.passed + passes
        if passes:
            lerp_(self.accepted, self.average, 1.0)
            self.judge.load_state_dict(self.rival.state_dict())
            self.judge_target.load_state_dict(self.rival_target.state_dict())
        told = {"gate/passed": float(passes), "gate/share": self.passed / self.iterations}
        return {"gate/value": now, "gate/trial_value": trial} | {
            name: now.new_tensor(value) for name, value in told.items()
        }
