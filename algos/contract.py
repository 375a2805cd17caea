"""What the programs ask of an algorithm."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import RheoError

Deploy = Callable[[Tensor, torch.Generator], Tensor]  # obs [N, O] -> actions [N, T, Da]


class World(Protocol):
    """What a method may try out before it is trained."""

    @property
    def obs(self) -> Tensor:
        """What is observed first, [N, O]."""
        ...

    @property
    def execute(self) -> int:
        """Steps of a plan that are executed; 0: there is no environment."""
        ...

    def worths(self, act: Deploy, attempt: int = 0, execute: int | None = None) -> Tensor:
        """Return, or success, of each episode from fixed initial states, [episodes].

        Attempts differ in the policy's noise only. execute: steps of a plan, where other ones.
        """
        ...


class Algorithm(Protocol):
    """`act`, `deploy` and `update` are its own; the rest may be left out, and is then what it says
    here, whether a class inherits from this one or not (`completed`).

    What is saved are the attributes that are tensors, numbers, generators or have a `state_dict`.
    """

    policy: Any  # None: nothing acts
    generator: torch.Generator  # of all randomness while training
    executed: int | None = None  # of the steps of a plan; None: all
    # names of its pure functions, which fast=compile may compile
    pure: Any = ()
    # copies of the policy that stand for that of the run's start
    anchors: tuple[str, ...] = ()
    # parts that belong to the networks, each with the setting it starts from, if any
    learned: Any = {}
    deploys: str | None = None  # the part that acts when deployed; None: `average` or `policy`
    beyond: str | None = None  # what is deployed, where that is more than a policy
    noisy_steps: bool = False  # whether deployed transitions have the noise of `policy.eta`
    needs_costs: bool = False  # whether batches have to tell what steps cost
    # whether policies are judged where recorded episodes begin
    needs_starts: bool = False
    # these observations [N, O]; None: nobody has said
    starts: Callable[[], Tensor] | None = None

    def act(self, obs: Tensor, /) -> Any:
        """Exploring actions [N, T, Da] for obs [N, O]; a `Choice` on policy, or `Coded`."""
        ...

    def deploy(self, obs: Tensor, generator: torch.Generator, /) -> Tensor:
        """Actions [N, T, Da] of the deployed policy."""
        ...

    def update(self, batch: Any, /) -> dict[str, Tensor]:
        """Learns from a batch; metrics are 0-d, without gradient.

        fast=graph records it where it is divided: into a `begin()` for the host, which counts in
        `updates` and sets rates (`optim.set_rate`), and a `learn_from` for the device, which asks
        it nothing and changes tensors in place. What that does every so often has its period in a
        field named `*_every`.
        """
        ...

    def validate(self, batch: Any, generator: torch.Generator, /) -> dict[str, Tensor]:
        """Losses on held-out data."""
        return {}

    def deployed(self) -> Any:
        """The policy whose samples are deployed."""
        return vars(self).get("average", self.policy)

    def action_critic(self) -> Any:
        """The critic of actions, None where there is none."""
        return vars(self).get("critic")

    def deploy_one(self) -> int:
        """Deploys a single sample from now on; the best of how many it was so far."""
        return 1

    @property
    def climbs(self) -> bool:
        """Whether what is deployed follows the gradient of its critic."""
        return False

    def ended(self, rows: Tensor, /) -> None:
        """Told which episodes are over, rows [N], where a deployed policy remembers something."""

    def wrap(self, env: Any, seed: int, /) -> Any:
        """The environment as the algorithm meets it."""
        return env

    def read(self, source: Any, /) -> None:
        """Shown what batches come from, before the first one and when a run goes on.

        Raises RheoError where it cannot learn from that.
        """

    def before_training(self, world: World, /) -> dict[str, float]:
        """Tries out what is taken as given; figures. Raises ValueError where it cannot be used."""
        return {}

    @property
    def memo_rows(self) -> int:
        """Rows of actions that the replay keeps of `remember` beside every transition."""
        return 0

    def remember(self, batch: Any, /) -> Tensor:
        """What is kept of transitions, [N, memo_rows, Da]."""
        return batch.action[:, :0]

    @staticmethod
    def upgrade(state: Mapping[str, Any], /) -> Mapping[str, Any]:
        """An older version's saved state as this one has it."""
        return state


def refuse_costless(algo: Algorithm, source: Any) -> None:
    """Raises RheoError where an algorithm learns from costs and its batches tell none."""
    if not algo.needs_costs or getattr(source, "costs", False):
        return
    parts = [getattr(source, name) for name in ("dataset", "replay") if hasattr(source, name)]
    lacks = next((part for part in parts if not part.costs), source)
    name = type(algo).__name__
    if hasattr(lacks, "path"):
        raise RheoError(
            f"data={lacks.path}: it holds no costs, which {name} learns from: a number a step "
            "under the key costs, as `rheo collect ... env.cost={kind: speed}` writes them; or use "
            "algo=iql"
        )
    raise RheoError(
        f"env.cost: nothing costs in the environment, and {name} learns from costs; set "
        "env.cost={kind: speed} (walking robots), or source=transitions with data=FILE alone"
    )


def give_starts(algo: Algorithm, source: Any) -> None:
    """Tells an algorithm where held-out episodes begin, if it judges policies there.

    Raises RheoError where no recording is read, or none of its episodes is held out.
    """
    if not algo.needs_starts:
        return
    recorded = getattr(source, "dataset", source)
    if not hasattr(recorded, "starts"):
        raise RheoError(
            f"source: {type(algo).__name__} judges policies where recorded episodes begin; set "
            "source=transitions (or mixed) with data=FILE"
        )
    try:
        recorded.starts()
    except ValueError as error:
        raise RheoError(str(error)) from error
    algo.starts = recorded.starts


def completed(kind: Any) -> Any:
    """An algorithm's class with the defaults of what it leaves out."""
    if Algorithm in kind.__mro__:
        return kind
    return type(kind.__name__, (kind, Algorithm), {"__module__": kind.__module__})
