"""`rheo replay`: an update that broke, done again from its dump."""

from typing import Any

from torch import Tensor

from rheo.errors import MACHINE, NUMERICS, RheoError

from .assemble import Sizes, make_algo, prepare
from .breaks import LARGEST, examined
from .config.compose import load
from .config.replaying import Replaying
from .dumps import acted, past_limit, read
from .fast import fast, mode_of
from .rates import slow
from .resuming import fitted
from .store.state import restore


def main(asked: Replaying) -> int:
    """Does a dumped update again and prints what breaks first.

    Returns 4 where it breaks again, 0 where it does not. Raises RheoError.
    """
    about, state, batch = read(asked.path)
    config = load(asked.path / "run", asked.words)
    prepare(config)
    print(f"{asked.path}: step {about.step}, seed {config['seed']}; it said: {about.what}")
    try:
        algo = make_algo(config, Sizes(**about.sizes), about.updates)
        slow(algo, about.rate, groups=False)
        state = fitted({"algo": state}, algo, asked.words)["algo"]
        restore(algo, state)
        what, norms = again(algo, batch, config)
    except (RuntimeError, IndexError, TypeError) as error:
        line = str(error).partition("\n")[0]
        raise RheoError(f"{asked.path}: does not fit its configuration: {line}", MACHINE) from error
    for name, norm in norms[:LARGEST]:
        print(f"gradient norm {norm:10.3g}  {name}")
    if what is None:
        print("nothing breaks here")
        return 0
    print(f"breaks again: {what}")
    return NUMERICS


def again(
    algo: Any, batch: Any, config: dict[str, Any]
) -> tuple[str | None, list[tuple[str, float]]]:
    """What breaks first in an update, or in an action, and the largest gradient norms."""
    device = algo.generator.device
    if isinstance(batch, Tensor):
        finding = acted(algo, batch.to(device))
        return (None if finding is None else finding.what), []
    mode = "off" if mode_of(config["fast"]) == "off" else "precision"
    update = fast(algo, mode, config["precision"])
    what, norms, _ = examined(algo, update, moved(batch, device), [], past_limit(config))
    return what, norms


def moved(batch: Any, device: Any) -> Any:
    """A batch on a device, in torch's own memory."""

    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: one(each) for name, each in value.items()}
        return value if value is None else value.to(device, copy=True)

    return type(batch)(*map(one, batch))
