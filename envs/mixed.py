"""Recorded data beside a running replay: in its batches, and in what it does."""

from typing import Any

import torch
from torch import Tensor

from ..ranges import Count, Share
from .batch import Batch, Coded
from .datasets import Transitions
from .encoded import See

BLOCK = 1 << 16  # rows of a recording whose norms are summed at a time


class Shown:
    """Behaviour that executes the recorded chunk of the nearest recorded observation now and then.

    A policy that has never seen a success has nothing to learn from; parts of demonstrations where
    it explores lead it there, fading as it learns (the idea of IGPO, 2025, whose inpainting is of
    text). A decision is shown with the probability share (1 - frames / until), of every environment
    on its own. Nearest is by the newest observation, every dimension in its recorded deviations.

    dataset: recorded steps that learn (`datasets.Transitions`). Raises ValueError for images.
    """

    def __init__(self, dataset: Any, share: float, until: int, generator: torch.Generator) -> None:
        if dataset.obs_images:
            raise ValueError(
                f"source.shown_share={share:g}: what is near cannot be told by pixels; set it to 0"
            )
        self.dataset, self.share, self.until, self.generator = dataset, share, until, generator
        rows = dataset.obs[dataset.train_steps]
        self.mean, deviation = rows.mean(0), rows.std(0, correction=0)
        self.weight = torch.where(deviation > 0, deviation, 1.0).square().reciprocal()
        parts = ((part - self.mean).square() @ self.weight for part in dataset.obs.split(BLOCK))
        self.norm = torch.cat(list(parts)).index_select(0, dataset.train_steps.long())

    def nearest(self, obs: Tensor) -> Tensor:
        """The recorded steps [N] nearest to the newest observations of obs [N, To*Do]."""
        point = (obs[:, -len(self.mean) :] - self.mean) * self.weight
        steps = self.dataset.train_steps.long()
        along = (self.dataset.obs @ point.T).index_select(0, steps) - self.mean @ point.T
        return steps[(self.norm[:, None] - 2 * along).argmin(0)]

    def among(self, act: Any, frames: int) -> Any:
        """`act`, or it with shown decisions among its own after so many frames."""
        share = self.share * max(0.0, 1 - frames / self.until)
        if share == 0:
            return act

        def behave(obs: Tensor) -> Tensor:
            own = act(obs)
            if isinstance(own, Coded):
                raise ValueError(
                    "source.shown_share: a replay of codes holds none of what is shown"
                )
            rows = torch.rand(len(obs), generator=self.generator, device=own.device) < share
            if not rows.any():  # looking for what is near passes over every recorded step
                return own
            return torch.where(rows[:, None, None], self.dataset.chunk(self.nearest(obs)), own)

        return behave


class Mixed:
    """Batches of which a share comes from recorded data and the rest from a running replay.

    replay, dataset: the two sources; their batch sizes are set here. The replay's rewards get the
    data's factor, costs are those of both or none. The order of a batch's rows is random; which of
    them are recorded is told.

    Args:
        batch_size: Rows per update, recorded and replayed ones together.
        offline_share: Share of each batch that is recorded; the rest is the replay's.
        shown_share: Share of decisions, at first, that are those of the nearest recorded
            observation instead of the policy's; 0: none.
        shown_until: Environment frames at which that share has fallen to 0, by a line; without
            effect with shown_share=0.
    """

    gives = Batch  # the kind of its batches

    def __init__(
        self,
        replay: Any,
        dataset: Transitions,
        *,
        batch_size: Count,
        offline_share: Share,
        shown_share: Share,
        shown_until: Count,
    ) -> None:
        offline = round(offline_share * batch_size)
        if not 0 < offline < batch_size:
            raise ValueError(
                f"source.offline_share={offline_share} of source.batch_size={batch_size} leaves "
                "one of the sources without a row; use source=replay or source=transitions"
            )
        self.replay, self.dataset = replay, dataset
        replay.batch_size, dataset.batch_size = batch_size - offline, offline
        if replay.env.obs_dim != dataset.obs_size or replay.env.action_dim != dataset.action_dim:
            raise ValueError(
                f"data has {dataset.obs_size} observations and {dataset.action_dim} actions, "
                f"{replay.env.env.id} has {replay.env.obs_dim} and {replay.env.action_dim}"
            )
        self.obs_size, self.action_dim = dataset.obs_size, dataset.action_dim
        self.obs_images, self.obs_steps = dataset.obs_images, dataset.obs_steps
        self.statistics, self.metrics = dataset.statistics, replay.metrics
        self.costs = replay.costs and dataset.costs
        shown = shown_share, shown_until, replay.generator
        self.shown = Shown(dataset, *shown) if shown_share > 0 else None

    @property
    def progress(self) -> int:
        """Environment frames so far."""
        return self.replay.progress

    def updates_in(self, steps: int) -> int:
        """Batches of a run of so many frames."""
        return self.replay.updates_in(steps)

    def encode(self, see: See) -> None:
        """See Dataset; the replay's environments encode for it."""
        self.dataset.encode(see)

    def next(self, act: Any) -> Batch:
        """A batch: rows of the replay and recorded ones, shuffled.

        An algorithm may take the first rows of a batch for a costly part: they hold both kinds in
        their shares.
        """
        if self.shown is not None:
            act = self.shown.among(act, self.progress)
        online, offline = self.replay.next(act), self.dataset.next(act)
        online = online._replace(reward=online.reward * self.dataset.reward_scale)
        if not self.costs:
            online, offline = online._replace(cost=None), offline._replace(cost=None)
        pairs = zip(online.columns, offline.columns, strict=True)
        batch, generator = Batch(*(torch.cat(pair) for pair in pairs)), self.dataset.generator
        rows = torch.randperm(len(batch.obs), generator=generator, device=generator.device)
        first = torch.arange(len(rows), device=rows.device)
        batch = batch._replace(recorded=first >= len(online.obs))
        return batch.take(rows)

    def state_dict(self) -> dict[str, Any]:
        """Both sources' states."""
        return {"replay": self.replay.state_dict(), "dataset": self.dataset.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.replay.load_state_dict(state["replay"])
        self.dataset.load_state_dict(state["dataset"])
