"""`rheo demo`: a small task learnt from scratch, then evaluated."""

from .config import compose
from .errors import RheoError
from .evaluate import evaluate_folder, report
from .run import Run
from .train import default_name, train

EPISODES = 50


def main(argv: list[str]) -> int:
    """Trains the demo recipe, evaluates it and prints the result; overrides are accepted."""
    config = compose(["recipe=demo", *argv])
    name = config["name"] or free_name(f"demo-{default_name(config)}")
    with Run.create(name, config) as run:
        code = train(run, None)
        if code:
            return code
        print(report(run, evaluate_folder(run, EPISODES)))
    return 0


def free_name(stem: str) -> str:
    """The first of stem, stem-2, stem-3 ... that is no run yet."""
    for count in range(1, 1000):
        name = stem if count == 1 else f"{stem}-{count}"
        try:
            Run.open(name)
        except RheoError:
            return name
    raise RheoError(f"runs/{stem}-1 to -999 exist: remove some")
