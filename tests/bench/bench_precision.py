"""What `precision=bf16` costs in accuracy: an update beside the same one in float32.

Weights, batch and noise of both sides are the same, so that what differs is rounding. Networks are
those that ship, with an output layer that is not zero any more.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rheo.algos.optim import shown
from rheo.policies.critics import QEnsemble
from rheo.policies.nets import Conditioned, Stack
from rheo.scripts.assemble import assemble, fit_statistics
from rheo.scripts.breaks import modules
from rheo.scripts.fast import exploring, narrow
from rheo.scripts.limits import composed, fresh, transitions
from rheo.scripts.paired import Goal, Plan, Row
from rheo.scripts.store.state import optimizers

ROLLOUT = (
    *("env=hopper", "env.num_envs=16", "source.decisions=64", "env.threads=1"),
    *("algo.learn.value_warmup=0", "algo.learn.epochs=1"),
)
CASES: dict[str, Sequence[str]] = {
    "BC": ("algo=bc", "env=none"),
    "SAC": ("algo=sac", "env=halfcheetah", "algo.policy_every=1"),
    "RFM": ("algo=rfm", "env=halfcheetah", "algo.policy_every=1"),
    "PPO": ("algo=ppo", *ROLLOUT),
    "ReinFlow": ("algo=reinflow", "init=scratch", *ROLLOUT),
}
NETWORKS = (Stack, Conditioned, QEnsemble)
LONG = 50  # updates after which losses are compared once more
LATE = 10  # of them, over whose losses the mean is taken
OUTPUT, LOSS, GRADIENT, LATER = (Goal("ours", "<=", most) for most in (0.01, 0.02, 0.1, 0.02))
FIRST = Goal("ours", "<=", 1e-5)


class Seen(NamedTuple):
    """Of the first update: what networks gave first, each optimiser's first loss and gradient."""

    outputs: dict[str, Tensor]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Side(NamedTuple):
    """An algorithm with what it does in a format."""

    algo: Any
    act: Callable[..., Any]
    update: Callable[[Any], dict[str, Tensor]]


def measure(plan: Plan) -> Iterator[Row]:
    """Relative errors (norms) of outputs, losses and gradients; of a batch after many updates."""
    for name, words in CASES.items():
        exact, rough = (side(words, numbers) for numbers in ("float32", "bf16"))
        if "algo.learn.epochs=1" in words:
            rollout = rollout_of(words, exact)
            rough.algo.generator.set_state(exact.algo.generator.get_state())
            yield from first_update(name, exact, rough, rollout)
            again = side(words, "bf16")
            told = again.update(rollout_of(words, again))
            error = float(told["policy/first_ratio_error"])
            yield Row(f"{name}: first ratio that is not 1", "", error, goals=(FIRST,))
            continue
        draw = partial(transitions, 256)
        yield from first_update(name, exact, rough, draw(torch.Generator().manual_seed(1)))
        if not plan.quick:
            yield later(name, exact, rough, draw)


def side(words: Sequence[str], numbers: str) -> Side:
    """An algorithm as its seed makes it."""
    algo = assembled(words)[0] if "algo.learn.epochs=1" in words else fresh(composed(words))
    outlet = getattr(getattr(algo.policy, "net", None), "outlet", None)
    if outlet is not None:
        nn.init.normal_(outlet.weight, std=0.05, generator=torch.Generator().manual_seed(3))
    act = exploring(algo, numbers, on_policy=True)
    return Side(algo, act, narrow(algo.update, algo, numbers))


def assembled(words: Sequence[str]) -> tuple[Any, Any]:
    """An algorithm with statistics as of normal data, and its source."""
    algo, source, sizes, _ = assemble(composed(words))
    generator = torch.Generator().manual_seed(2)
    fit_statistics(algo, *(torch.randn(1000, size, generator=generator) for size in sizes[:2]))
    return algo, source


def rollout_of(words: Sequence[str], acting: Side) -> Any:
    """What a side does first."""
    return assembled(words)[1].next(acting.act)


def first_update(name: str, exact: Side, rough: Side, batch: Any) -> Iterator[Row]:
    """The errors of the first update."""
    one, two = (seen(each, batch) for each in (exact, rough))
    for what, goal in {"outputs": OUTPUT, "losses": LOSS, "gradients": GRADIENT}.items():
        ours, theirs = getattr(two, what), getattr(one, what)
        for part in theirs:
            error = float((ours[part] - theirs[part]).norm() / theirs[part].norm())
            yield Row(f"{name}: {what} of {part}", "relative", error, goals=(goal,))


def seen(who: Side, batch: Any) -> Seen:
    """An update, looked at."""
    found, names = Seen({}, {}, {}), {id(each): name for name, each in optimizers(who.algo)}

    def look(stage: str, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        name = names[id(optimizer)].removesuffix("_opt")
        held = [p.grad for group in optimizer.param_groups for p in group["params"]]
        temperature = "." in name  # a number, whose loss is 0 at first
        if stage == "gradient" and name not in found.losses and not temperature:
            found.losses[name] = loss.detach()
            found.gradients[name] = torch.cat([g.flatten() for g in held if g is not None])

    def note(part: str, _: nn.Module, __: Any, output: Tensor) -> None:
        found.outputs.setdefault(part, output.detach().clone())

    networks = [
        (part, inner)
        for part, whole in modules(who.algo)
        for inner in whole.modules()
        if isinstance(inner, NETWORKS) and any(p.requires_grad for p in inner.parameters())
    ]
    kept = {}
    for part, inner in networks:  # the outermost one of each part
        kept.setdefault(part, inner.register_forward_hook(partial(note, part)))
    with shown(look):
        who.update(batch)
    for handle in kept.values():
        handle.remove()
    return found


def later(name: str, exact: Side, rough: Side, draw: Callable[..., Any]) -> Row:
    """The mean loss of both after many updates on the same batches."""
    losses: list[list[float]] = [[], []]
    for count in range(1, LONG):
        batch = draw(torch.Generator().manual_seed(1 + count))
        for each, found in zip((exact, rough), losses, strict=True):
            told = each.update(batch)
            key = "critic/loss" if "critic/loss" in told else "policy/loss"
            found.append(float(told[key]))
    one, two = (sum(found[-LATE:]) / LATE for found in losses)
    text = f"{name}: loss after {LONG} updates"
    return Row(text, "relative", abs(two - one) / abs(one), goals=(LATER,))
