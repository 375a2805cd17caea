"""What a checkpoint says of optimisers is taken only where they could have said it themselves."""

import copy
from typing import Any

import pytest
import torch
from shipped import ALGOS, config

from rheo.errors import RheoError
from rheo.scripts.assemble import Sizes, make_algo
from rheo.scripts.rates import slow
from rheo.scripts.store.state import capture, optimizers, restore

GONE = object()
GROUP, MOMENT = ("param_groups", 0), ("state", 0)
FORGED = [  # a place in an optimiser's state, and what stands there
    *(((*GROUP, "lr"), value) for value in (1e6, -1e-3, float("nan"), float("inf"), "x", None)),
    *(((*GROUP, "lr"), value) for value in (torch.tensor(9.0), torch.ones(2), GONE)),
    *(((*GROUP, "betas"), value) for value in ((0.9,), (0.0, 0.0), (2.0, 0.9), ["x", 1], GONE)),
    *(((*GROUP, key), 0.5) for key in ("eps", "weight_decay")),
    *(((*GROUP, key), True) for key in ("maximize", "amsgrad", "differentiable", "foreach")),
    *(((*GROUP, "params"), value) for value in ([], [1], ["x"], GONE)),
    *((("param_groups",), value) for value in ([], None, {}, GONE)),
    *(((*MOMENT, "exp_avg"), value) for value in (torch.zeros(2), None, GONE, [1.0], 0.0)),
    *(((*MOMENT, "exp_avg_sq"), value) for value in (torch.zeros(1, 1, 1), "negative", GONE)),
    *(((*MOMENT, "step"), torch.tensor(value)) for value in (-1.0, float("nan"), [1.0, 2.0])),
    *(((*MOMENT, "step"), value) for value in ("x", GONE)),
    *(((*MOMENT,), value) for value in (None, [], {"step": torch.tensor(1.0)})),
    *((("state",), value) for value in (None, [], {10_000: {"step": torch.tensor(1.0)}}, GONE)),
]


def learner(algo: str) -> Any:
    """An algorithm whose optimisers have taken steps."""
    made = make_algo(config(algo), Sizes(3, 2), 10)
    generator = torch.Generator().manual_seed(0)
    for _, optimizer in optimizers(made):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return made


def forge(state: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    """Puts something else into an optimiser's state."""
    *path, last = place
    for key in path:
        state = state[key]
    if value is GONE:
        del state[last]
    elif isinstance(value, str) and value == "negative":
        state[last] = -state[last].abs() - 1
    else:
        state[last] = value


@pytest.fixture(scope="module")
def sac() -> Any:
    return learner("sac")


def held(algo: Any) -> list[tuple[str, str, Any]]:
    """Parts with optimisers, where in a part's state each is, and that state, which may be changed.

    Those that an algorithm holds itself, and those of its parts.
    """
    state = copy.deepcopy(capture(algo))
    named = [name.partition(".") for name, _ in optimizers(algo)]
    return [(name, inner, state) for name, _, inner in named]


@pytest.mark.parametrize(
    ("place", "value"), FORGED, ids=lambda x: "gone" if x is GONE else str(x)[:40]
)
def test_a_forged_optimiser_is_refused_by_its_name(sac: Any, place: Any, value: Any) -> None:
    for name, inner, _ in held(sac):
        state = copy.deepcopy(capture(sac))
        forge(state[name][inner] if inner else state[name], place, value)
        if inner and place[-1] == "exp_avg_sq" and isinstance(value, torch.Tensor):
            value = torch.zeros(1, 1, 1)
        with pytest.raises(RheoError, match=rf"^checkpoint part algo\.{name} does not fit"):
            restore(learner("sac"), state)


@pytest.mark.parametrize("algo", ALGOS)
def test_what_an_optimiser_says_itself_is_taken(algo: str) -> None:
    """Also with lower rates, as schedules and a run that went back leave them."""
    made = learner(algo)
    slow(made, 0.5)
    state = copy.deepcopy(capture(made))
    again = make_algo(config(algo), Sizes(3, 2), 10)
    restore(again, state)
    for (_, one), (_, two) in zip(optimizers(made), optimizers(again), strict=True):
        rates = [each.param_groups[0]["lr"] for each in (one, two)]
        assert rates[0] == rates[1] and rates[0] <= one.defaults["lr"]
        for mine, theirs in zip(one.state.values(), two.state.values(), strict=True):
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("algo", ["bc", "expo", "ppo", "td3"])
def test_a_rate_above_the_configuration_s_is_refused_wherever_it_is(algo: str) -> None:
    for name, inner, state in held(learner(algo)):
        state = copy.deepcopy(state)
        forge(state[name][inner] if inner else state[name], (*GROUP, "lr"), 1e6)
        with pytest.raises(RheoError, match=r"its lr is 1000000\.0, and it was made with "):
            restore(learner(algo), state)
