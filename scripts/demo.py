"""`rheo demo`: a task learnt from scratch; then a flow cloned from bad demonstrations of it, and
fine-tuned in the simulator.
"""

from typing import Any

from rheo.errors import RheoError

from . import collect
from .config import verbs
from .config.compose import SHARED, compose
from .config.words import as_flags
from .evaluate import evaluate_folder, report
from .store.run import Run
from .store.where import default_name, locate
from .train import train

EPISODES = 50
DEMONSTRATIONS = ("noise=0.5", "steps=20000")  # of the learnt policy, by a trembling hand


def main(asked: tuple[dict[str, Any], list[str]]) -> int:
    """Trains the demo recipes, evaluates them and prints the results; overrides are accepted."""
    config, argv = asked
    name = config["name"] or free_name(f"demo-{default_name(config)}")
    code = train(config, name)
    if code:
        return code
    print(results(name, config["config_dir"]), flush=True)
    if any(word.partition("=")[0] not in SHARED for word in argv):
        return 0
    return second_act(name, argv, argv)


def second_act(first: str, clone: list[str], tune: list[str]) -> int:
    """Demonstrations of the run `first`, a clone and its fine-tuning, with these overrides."""
    file = locate(first) / "demonstrations.hdf5"
    collect.main(verbs.collect([first, *DEMONSTRATIONS, f"out={file}"]))
    names = [free_name(f"{first}-{part}") for part in ("cloned", "tuned")]
    words = (
        ["recipe=demo_clone", f"data={file}", *clone],
        ["recipe=demo_tune", f"init={locate(names[0])}", *tune],
    )
    for name, overrides in zip(names, words, strict=True):
        code = train(compose(overrides), name)
        if code:
            return code
    before, after = (results(name, []) for name in names)
    print(f"\ncloned from demonstrations:\n{before}\n\nfine-tuned with ReinFlow:\n{after}")
    return 0


def results(name: str, config_dir: list[str]) -> str:
    """A run's last checkpoint evaluated, as lines for a person."""
    run = Run.open(name, as_flags(config_dir))
    return report(run, evaluate_folder(run, EPISODES))


def free_name(stem: str) -> str:
    """The first of stem, stem-2, stem-3 ... that is no folder yet."""
    for count in range(1, 1000):
        name = stem if count == 1 else f"{stem}-{count}"
        if not locate(name).exists():
            return name
    raise RheoError(f"runs/{stem} to {stem}-999 exist: remove some")
