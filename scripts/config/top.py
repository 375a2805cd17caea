"""The top-level keys of a configuration with the types of their values, and what is fixed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rheo.envs.packages import home

HOME = Path(__file__).resolve().parents[2] / "configs"
NODE = "dict | None"
COUNT, NATURAL = "Annotated[int, Range(ge=1)]", "Annotated[int, Range(ge=0)]"
TOP = {
    "algo": "dict",
    "policy": "dict",
    "critic": NODE,
    "eye": NODE,
    "source": "dict",
    "env": NODE,
    "data": "str | list[str] | None",
    "init": "str | None",
    "init_part": "Literal['auto', 'policy', 'base']",
    "steps": COUNT,
    "seed": NATURAL,
    "device": "str",
    "name": "str | None",
    "log_every": COUNT,
    "eval_every": COUNT,
    "save_every": COUNT,
    "episodes": COUNT,
    "limits": "dict",
    "horizon": COUNT,
    "fast": "Literal['off', 'precision', 'compile', 'graph'] | bool",
    "threads": NATURAL,
    "tracker": "dict",
    "recipe": "str | dict | None",
    "config_dir": "list[str]",
}
# first parts of the keys that may follow a run's name
OPTIONS = (*TOP, "ref_min", "ref_max", "steer")
# settings of a policy that its weights do not depend on: free for another run or evaluation
AT_WILL = (
    *("policy.steps", "policy.grid", "policy.sampler", "policy.eta", "policy.clip_x"),
    *("policy.clip_a", "policy.deploy_scale"),
)
# settings of an environment for the machine that steps it: no number depends on them
STEPPING = ("threads", "workers", "step_timeout", "restarts")
EVAL_SEED = 100_000  # environment i of an evaluation starts from seed EVAL_SEED + i


def inside(tree: Mapping[str, Any], place: str) -> Any:
    """The value at a dotted key, None where there is none."""
    node: Any = tree
    for key in place.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def walk(node: Any, place: str = "") -> list[tuple[str, Any]]:
    """All leaves of a tree with their full keys."""
    if isinstance(node, Mapping):
        pairs = [(f"{place}.{key}" if place else str(key), value) for key, value in node.items()]
    elif isinstance(node, list):
        pairs = [(f"{place}[{index}]", value) for index, value in enumerate(node)]
    else:
        return [(place, node)]
    return [leaf for inner, value in pairs for leaf in walk(value, inner)]


def files_of(env_id: str) -> list[str]:
    """The names of the files of configs/env that have this environment.

    Else that of its suite, which leaves the id open.
    """
    files = sorted((HOME / "env").glob("*.yaml"))
    ids = {file.stem: file.read_text().splitlines() for file in files}
    suite = suite_of(env_id)
    own = [name for name, lines in ids.items() if f"id: {env_id}" in lines]
    return own or [suite] * ("id: ???" in ids.get(suite, ()))


def suite_of(env_id: str) -> str:
    """Of a suite's ids the file of configs/env: metaworld of metaworld/TASK, ogbench of cube-*."""
    return home(env_id)[0]
