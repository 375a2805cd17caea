"""A model of the world, learned from recorded transitions, in which policies are tuned.

E members, B batch, M rows of a member, O numbers of an observation, Da action dimension.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..envs.batch import Batch
from ..errors import RheoError
from ..policies.dynamics import Dynamics, Forecast
from ..ranges import NonNegative, Positive, Share
from .contract import Algorithm
from .optim import adam, anneal, step

FITTED = 200_000  # recorded steps that statistics of changes are taken from, at most
KEPT, FIRST = 4096, 1024  # recorded steps that a run keeps, and first observations of episodes
PATHS, AHEAD = 256, (1, 5, 20)  # recorded paths that are foretold, and how many steps ahead
BOUND_COEF = 0.01  # of the widths between the bounds of log-variances (arXiv:1805.12114)
SINGLE = {  # what a transition of one step is, by attribute of what reads the data, and its key
    "horizon": ("horizon", 1),
    "execute": ("env.execute", 1),
    "obs_steps": ("env.obs_steps", 1),
    "n_step": ("source.n_step", 1),
    "gamma": ("source.gamma", 1.0),
}


@dataclass(eq=False)
class WorldModel(Algorithm):
    """An ensemble of Gaussian dynamics networks (PETS, arXiv:1805.12114; MBPO, arXiv:1906.08253).

    Each member learns the change of the observation and the reward by its likelihood, and the end
    of the task by cross-entropy, from rows of its own of every batch. The run keeps KEPT recorded
    steps and FIRST first observations, from which `env=imagined` begins, and which say how far
    members are apart where there are data. Nothing acts: there is no policy.

    A last step whose successor the file does not hold teaches its reward and its end alone.

    Args:
        lr: Adam learning rate at the start of the run.
        lr_floor: Share of the learning rate that is left at the end of the run, reached along a
            cosine; 1 keeps it constant.
        weight_decay: Weight decay of AdamW; 0: none.
        max_norm: Largest gradient norm of an update; a longer gradient is scaled down to it.
    """

    pure = ("loss",)
    policy = None

    model: Dynamics
    generator: torch.Generator
    run_updates: int
    _: KW_ONLY
    lr: Positive
    lr_floor: Share
    weight_decay: NonNegative
    max_norm: Positive

    def __post_init__(self) -> None:
        self.optimizer = adam(self.model.parameters(), self.lr, self.weight_decay)
        self.updates = 0
        device = self.generator.device
        obs, action = self.model.obs_norm.dim, self.model.action_norm.dim
        self.states = torch.zeros(KEPT, obs, device=device)
        self.actions = torch.zeros(KEPT, action, device=device)
        self.firsts = torch.zeros(FIRST, obs, device=device)
        self.paths: tuple[Tensor, Tensor] | None = None  # [P, 1 + AHEAD, O] and [P, AHEAD, Da]

    def read(self, source: Any) -> None:
        """Takes statistics of changes, and what is kept, from what the run learns from.

        Raises RheoError for what is no source of recorded single steps.
        """
        refuse_other_steps(source, self.model.members)
        steps = source.train_steps
        self.model.change.fit(changes(source.rows(spaced(steps, FITTED))))
        kept = source.rows(spaced(steps, KEPT))
        self.states.copy_(kept.obs)
        self.actions.copy_(kept.action[:, 0])
        begin = steps[source.first[steps.long()] == steps]
        self.firsts.copy_(source.rows(spaced(begin if len(begin) else steps, FIRST)).obs)
        self.paths = paths_of(source)

    def act(self, obs: Tensor) -> Tensor:
        """Raises TypeError: nothing acts."""
        raise TypeError("a model of the world has no policy")

    def deploy(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Raises TypeError: nothing acts."""
        raise TypeError("a model of the world has no policy")

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of all members; metrics are 0-d."""
        self.begin()
        return self.learn_from(batch)

    def begin(self) -> None:
        """Counts an update and sets its rate."""
        self.updates += 1
        anneal(self.optimizer, self.lr, self.updates / max(self.run_updates, 1), self.lr_floor)

    def learn_from(self, batch: Batch) -> dict[str, Tensor]:
        """The device's part of an update."""
        rows = len(batch.obs) // self.model.members * self.model.members
        own = (x[:rows].unflatten(0, (self.model.members, -1)) for x in batch[:5])
        loss, told = self.loss(*own)
        step(self.optimizer, loss, self.max_norm)
        return {f"world/{name}": value.detach() for name, value in told.items()}

    def loss(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised [], the members' sum, and their mean losses.

        obs [E, M, O] and all others likewise, or [M, O] where all members see the same rows.
        """
        mean, log_var, logit = self.model(obs, action.squeeze(-2))
        ended = discount == 0
        known = (next_obs != obs).any(-1) | ~ended
        target = self.model.target(obs, next_obs, reward)
        weight = torch.ones_like(target)
        weight[..., :-1] = known[..., None]
        square = (mean - target).square()
        parts = {
            "nll": weighted(square * (-log_var).exp() + log_var, weight),
            "mse": weighted(square, weight),
            "end_loss": F.binary_cross_entropy_with_logits(logit, ended.expand_as(logit).float()),
        }
        bounds = BOUND_COEF * (self.model.log_var_high - self.model.log_var_low).sum(-1).mean()
        total = self.model.members * (parts["nll"] + parts["end_loss"] + bounds)
        return total, parts

    @torch.no_grad()
    def validate(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses on held-out steps, and the error of forecasts of several steps."""
        _, told = self.loss(*batch[:5])
        errors = {} if self.paths is None else path_errors(self.model, *self.paths)
        return {f"val/{name}": value for name, value in (told | errors).items()}

    def predict(self, obs: Tensor, action: Tensor) -> Forecast:
        """The members' forecasts for obs [B, O] and action [B, Da]."""
        return self.model.predict(obs, action)


def weighted(value: Tensor, weight: Tensor) -> Tensor:
    """The mean [] of values of all members [E, M, O + 1] under weights that may have no members."""
    weight = weight.expand_as(value)
    return (value * weight).sum() / weight.sum().clamp(min=1.0)


def changes(batch: Batch) -> Tensor:
    """Changes of observations and rewards [B, O + 1] of the steps whose successor is known."""
    change = batch.next_obs - batch.obs
    known = (change != 0).any(-1) | (batch.discount > 0)
    found = torch.cat([change, batch.reward[:, None]], -1)
    return found[known] if known.any() else found


def spaced(rows: Tensor, count: int) -> Tensor:
    """So many of rows, evenly spaced, some several times where there are fewer."""
    place = torch.linspace(0, len(rows) - 1, count, dtype=torch.float64, device=rows.device)
    return rows[place.round().long()]


def paths_of(source: Any) -> tuple[Tensor, Tensor] | None:
    """Observations [P, 1 + AHEAD, O] and actions [P, AHEAD, Da] from held-out steps on.

    None where no episode that is held out is long enough.
    """
    held, ahead = source.held_steps.long(), AHEAD[-1]
    begin = held[source.last[held].long() - held >= ahead]
    if not len(begin):
        return None
    rows = spaced(begin, min(PATHS, len(begin)))[:, None]
    place = rows + torch.arange(ahead + 1, device=rows.device)
    return source.obs[place], source.action[place[:, :-1]]


@torch.no_grad()
def path_errors(model: Dynamics, obs: Tensor, action: Tensor) -> dict[str, Tensor]:
    """Error of the members' mean path, given where it begins and what is done, AHEAD steps on.

    Root mean square over paths and numbers, each in standard deviations of the observations: 1 is
    what their mean would come to.
    """
    now, errors = obs[:, 0], {}
    for k in range(action.shape[1]):
        now = model.predict(now, action[:, k]).next_obs.mean(0)
        if k + 1 in AHEAD:
            gap = (now - obs[:, k + 1]) / model.obs_norm.scale
            errors[f"error_{k + 1}"] = gap.square().mean().sqrt()
    return errors


def refuse_other_steps(source: Any, members: int) -> None:
    """Raises RheoError for what does not give recorded transitions of one step."""
    if not hasattr(source, "train_steps") or not hasattr(source, "reward"):
        raise RheoError(
            "source: algo=world learns from recorded steps and their rewards; set "
            "source=transitions with data=FILE"
        )
    for name, (key, value) in SINGLE.items():
        if getattr(source, name) != value:
            raise RheoError(
                f"{key}={getattr(source, name)}: algo=world foretells single steps, whatever the "
                f"policies plan that are tuned in it; set {key}={value:g}"
            )
    if source.batch_size < members:
        raise RheoError(
            f"source.batch_size={source.batch_size}: every one of algo.model.members={members} "
            "learns from rows of its own; give at least as many"
        )
