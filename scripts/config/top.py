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
    "save_minutes": "Annotated[float, Range(gt=0)] | None",
    "episodes": COUNT,
    "limits": "dict",
    "signal": "dict",
    "horizon": COUNT,
    "fast": "Literal['off', 'precision', 'compile', 'graph'] | bool",
    "precision": "Literal['float32', 'bf16']",
    "threads": NATURAL,
    "tracker": "dict",
    "recipe": "str | dict | None",
    "config_dir": "list[str]",
    "programs": "dict",
}
LIMITS = ("q", "value", "gradient_norm", "first_ratio_error", "kl", "saturated")
NESTED = {
    **{f"limits.{name}": "Annotated[float, Range(gt=0)] | None" for name in LIMITS},
    "signal.grace": "Annotated[float, Range(ge=0)] | None",
    "limits.skip": NATURAL,
    "limits.rollback": "Annotated[float, Range(gt=0, lt=1)] | None",
}
MEANINGS = {  # of the keys that a run has beside its groups; those of groups are of their classes
    "name": "Run folder, below runs/ unless it is absolute; null makes one of algorithm, task and "
    "seed.",
    "data": "Recorded data to learn from: file, folder or name of a data set, or several, as "
    "[a,b]; null: none.",
    "init": "Run whose networks are taken over at the start; scratch is for random weights where "
    "an algorithm expects a run; null: none.",
    "init_part": "What init gives: policy, its deployed policy alone; base, what an expo, resip or "
    "dsrl run builds on; auto, all of the same algorithm, else the policy.",
    "steps": "Length of the run: environment frames, or updates where recorded data alone are "
    "learned from.",
    "log_every": "Steps (frames, or updates on recorded data alone) between two rows of metrics.",
    "eval_every": "Steps (frames, or updates on recorded data alone) between two evaluations.",
    "save_every": "Steps (frames, or updates on recorded data alone) between two checkpoints.",
    "save_minutes": "Minutes after a checkpoint at which the next one comes at the latest, the "
    "first of a run after one; null: only by save_every.",
    "episodes": "Episodes per evaluation, from initial states that are the same in all of them.",
    "horizon": "Actions that a policy plans per decision; the first env.execute of them are "
    "executed.",
    "seed": "Seed of all that is random in the run: networks, batches, exploration and "
    "environments.",
    "device": "Where networks learn: cpu, cuda, cuda:N, or auto, a GPU where there is one.",
    "threads": "CPU threads of the learner; 0: one per core. Those of the physics are env.threads.",
    "fast": "How updates are made fast: off; precision, a quicker kernel that is as exact; "
    "compile, torch.compile; graph, CUDA graphs.",
    "precision": "Format in which hidden layers of networks multiply in updates: float32; bf16, of "
    "three digits, quicker for wide networks on a GPU.",
    "signal.grace": "Seconds from a signal to the end (status 75) of a run whose step is stuck; "
    "ten times as long for a save under way and several ranks; null: it is waited for.",
    "limits.q": "Absolute mean Q of the critics above which the run stops with a diagnosis; null: "
    "no limit.",
    "limits.value": "Absolute mean of the state values above which the run stops with a diagnosis; "
    "null: no limit.",
    "limits.gradient_norm": "Norm of the policy's gradient, before it is cut, above which the run "
    "stops with a diagnosis; null: no limit.",
    "limits.first_ratio_error": "Distance from 1 of a rollout's first probability ratios above "
    "which the run stops with a diagnosis; null: no limit.",
    "limits.kl": "KL divergence of an update on policy above which the run stops with a diagnosis; "
    "null: no limit.",
    "limits.saturated": "Share of actions on the bounds of their box above which the run stops "
    "with a diagnosis; null: no limit.",
    "limits.skip": "Updates of the whole run that may be undone and left out where their numbers "
    "break; 0: the first ends it.",
    "limits.rollback": "Factor of all learning rates with which the run goes on, once, from its "
    "last checkpoint where numbers break or pass a limit; null: it ends there.",
}
# first parts of the keys that may follow a run's name
OPTIONS = (*TOP, "ref_min", "ref_max", "steer")
# settings of a policy that its weights do not depend on: free for another run or evaluation
AT_WILL = (
    *("policy.steps", "policy.grid", "policy.sampler", "policy.eta", "policy.clip_x"),
    *("policy.clip_a", "policy.deploy_scale", "policy.guidance", "policy.label"),
    *("policy.want", "policy.begin"),
)
FREE = (*AT_WILL, "env.execute")  # values of a run that an evaluation may change
# groups whose keys may change between two starts of a run
AT_ANY_START = ("limits", "signal", "tracker")
# settings of an environment for the machine that steps it: no number depends on them
STEPPING = ("threads", "workers", "step_timeout", "restarts")
PLACES = (  # where it runs, which changes no number, and where an exported program is now
    *("device", "policy.path"),
    *(f"env.{key}" for key in STEPPING),
)
IMAGINING = ("model", "length", "start", "quantile", "penalty")  # of env=imagined alone
BESIDE = ("source.judged", "source.file")  # files that are read beside the data
ON_RESUME = (  # what may change between two starts of a run; all else is in its checkpoint
    *("steps", "log_every", "eval_every", "save_every", "episodes", "threads", "fast", "limits"),
    *("save_minutes", "signal", "tracker"),
    *("data", *BESIDE, "env.model", *PLACES),  # where things are; what they hold is compared
)
EVAL_SEED = 100_000  # environment i of an evaluation starts from seed EVAL_SEED + i


def changes(key: str) -> bool:
    """Whether a key is of what another evaluation of a run may change: how it acts, and where."""
    return key in (*PLACES, *FREE) or key.startswith("algo.deploy_")


def elsewhere(key: str) -> bool:
    """Whether a key names another environment than a run's, or an option of it."""
    own = ("env", "env.id", "env.backend", *(f"env.{name}" for name in IMAGINING))
    return key in own or key.startswith(("env.options", "env.cost"))


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
