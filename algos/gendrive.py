"""A reward model learned from pairs of chunks, which then tunes the policy and chooses for it."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..envs.batch import Compared
from ..policies.candidates import sample
from ..policies.critics import QEnsemble
from ..ranges import Count, NonNegative, Positive
from .comparing import Group
from .optim import adam, step
from .prefer_offline import PreferOffline, scores
from .preferences import agreement, bradley_terry, preferred


@dataclass(eq=False)
class Judged:
    """What has a reward of chunks, one network."""

    critic: QEnsemble


@dataclass(eq=False)
class GenDrive(PreferOffline, Judged):
    """Generation, evaluation and tuning by the evaluator, Gen-Drive (arXiv:2410.05582).

    In the first `reward_updates` a reward r(s, a) of whole chunks learns the preferences of Bradley
    and Terry, -log sigmoid(r(s, a_w) - r(s, a_l)). Then it rests, and the policy learns: at the
    pairs' observations `particles` actions of its own are compared by their reward (`Comparing`).
    Deployed is the best of deploy_candidates samples by that reward. B batch, K actions of a group.

    The tuning is by groups at one state where the published one is PPO over a chain (`algo=dppo`).
    A reward that nothing tells of other actions than the pairs' is climbed where it errs: pairs
    should be of the policy's own chunks, and `anchor_coef` holds it.

    Args:
        reward_updates: Updates in which the reward alone learns; then the policy does, and it not.
        particles: Own actions per state, which the reward compares.
        critic_lr: Adam learning rate of the reward.
        deploy_candidates: Samples of the policy per deployed action, of which the reward chooses
            one; 1: no choice.
        deploy_temperature: Temperature, in units of the reward, of the softmax that draws one of
            deploy_candidates; 0 takes the best.
    """

    pure = ("policy_loss", "reward_loss")

    _: KW_ONLY
    reward_updates: Count
    particles: Count
    critic_lr: Positive
    deploy_candidates: Count
    deploy_temperature: NonNegative

    def __post_init__(self) -> None:
        super().__post_init__()
        self.critic_opt = adam(self.critic.parameters(), self.critic_lr)

    def refuse(self) -> None:
        """As `Comparing.refuse`; and for a reward without one zero, and groups of one."""
        super().refuse()
        if self.critic.members > 1:
            raise ValueError(
                f"critic.members={self.critic.members}: rewards learned from pairs have no common "
                "zero, so that the smallest of several means nothing; set critic.members=1"
            )
        if self.particles < 2:
            raise ValueError(
                "algo.particles=1: a group has at least 2 actions; set it to 2 or more"
            )

    # ------------------------------------------------------------------ acting
    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A chosen sample of the averaged policy, [N, T, Da]."""
        count, heat = self.deploy_candidates, self.deploy_temperature
        return sample(self.average, self.critic, obs, generator, count, heat, self.policy.eta)

    def deploy_one(self) -> int:
        candidates, self.deploy_candidates = self.deploy_candidates, 1
        return candidates

    # ---------------------------------------------------------------- learning
    def update(self, batch: Compared) -> dict[str, Tensor]:
        """Counts an update; one step of the reward, or of the policy."""
        self.begin()
        return self.learn_from(batch, self.updates > self.reward_updates)

    def learn_from(self, batch: Compared, tunes: bool = False) -> dict[str, Tensor]:
        """The device's part of an update in which the policy learns, or the reward."""
        if not tunes:
            loss, metrics = self.reward_loss(batch)
            step(self.critic_opt, loss)
            return metrics
        return self.learn_policy(batch.obs, self.judged(batch.obs))

    @torch.no_grad()
    def judged(self, obs: Tensor) -> Group:
        """Groups of the policy's own actions with their rewards."""
        action, chain = self.own(self.policy, obs, self.particles, self.generator)
        return self.grouped(action, self.reward(obs, action), chain, self.generator)

    def reward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Rewards [B, K] of chunks [B, K, T, Da]; their differences at a state count."""
        return self.critic(obs[:, None], action)[0]

    def reward_loss(self, batch: Compared) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the preferences, [], and how many of them the reward gets right."""
        reward = self.reward(batch.obs, batch.action)
        sign = preferred(scores(batch), "hard", self.generator)
        loss = bradley_terry(reward, sign, 1.0)
        right = agreement(reward.detach(), sign)
        return loss, {"critic/loss": loss.detach(), "critic/accuracy": right}

    @torch.no_grad()
    def validate(self, batch: Compared, generator: torch.Generator) -> dict[str, Tensor]:
        """Of held-out pairs the reward's loss and share of right ones; the policy's gain of reward
        over the recorded chunks.
        """
        loss, told = self.reward_loss(batch)
        action, _ = self.own(self.average, batch.obs, self.particles, generator)
        gain = self.reward(batch.obs, action).mean() - self.reward(batch.obs, batch.action).mean()
        return {"val/loss": loss, "val/accuracy": told["critic/accuracy"], "val/reward_gain": gain}
