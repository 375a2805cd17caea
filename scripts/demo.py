"""`rheo demo`: a small task learnt from scratch, then evaluated."""

from .config import compose
from .errors import RheoError
from .evaluate import evaluate_folder, report
from .run import Run, locate
from .train import default_name, train

EPISODES = 50


def main(argv: list[str]) -> int:
    """Trains the demo recipe, evaluates it and prints the result; overrides are accepted."""
    config = compose(["recipe=demo", *argv])
    name = config["name"] or free_name(f"demo-{default_name(config)}")
    code = train(config, name)
    if code:
        return code
    flagged = [word for folder in config["config_dir"] for word in ("--config-dir", folder)]
    run = Run.open(name, flagged)
    print(report(run, evaluate_folder(run, EPISODES)))
    return 0


def free_name(stem: str) -> str:
    """The first of stem, stem-2, stem-3 ... that is no folder yet."""
    for count in range(1, 1000):
        name = stem if count == 1 else f"{stem}-{count}"
        if not locate(name).exists():
            return name
    raise RheoError(f"runs/{stem} to {stem}-999 exist: remove some")
