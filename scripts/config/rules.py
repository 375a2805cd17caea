"""What types cannot say: values that contradict each other, and what is not there.

Each check takes the resolved, well-typed configuration as a plain tree and gives its errors. None
imports torch or a simulator.
"""

import importlib.util
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rheo.envs import packages
from rheo.envs.packages import ELSEWHERE, engine_lacks, home, importable, pip_install
from rheo.envs.paths import exists
from rheo.errors import RheoError, command, nearest

from ..stopping import SIGNS
from ..store.where import existing, shown
from . import programs, schema, sizes
from .top import files_of, inside

PAIRS = "rheo.envs.compared.Comparisons"  # the source that reads pairs of chunks
Check = Callable[[dict[str, Any]], list[str]]


def run(tree: dict[str, Any], inputs: Sequence[Check], *, careful: bool = False) -> list[str]:
    """All errors of all checks, with those of the `inputs` that are about to be read.

    careful: the tree is known to be wrong somewhere; a check that trips over that is left out.
    """
    checks = (chunk, heads, levels, device, environment, engine, world, program, still)
    checks = (*checks, wishes, sizes.refuse)
    errors = []
    for check in (*checks, *inputs, limits, signals):
        try:
            errors += check(tree)
        except (TypeError, AttributeError, KeyError, ValueError):
            if not careful:
                raise
    return errors


def limits(tree: dict[str, Any]) -> list[str]:
    """Limits name metrics that are watched, by positive numbers or null, and what happens then."""
    errors = []
    for name, value in (tree.get("limits") or {}).items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name == "skip":
            if value is not None and not (isinstance(value, int) and number and value >= 0):
                errors.append(f"limits.skip={value}: must be a number of updates, 0 or more")
        elif name == "rollback":
            if value is not None and not (number and 0 < value < 1):
                errors.append(f"limits.rollback={value}: must be a share between 0 and 1, or null")
        elif name not in SIGNS:  # from a file of the user's
            errors.append(f"limits.{name}: not watched{nearest(name, SIGNS)}")
        elif value is not None and not (number and value > 0):
            errors.append(f"limits.{name}={value}: must be a positive number, or null")
    return errors


def signals(tree: dict[str, Any]) -> list[str]:
    """What is told of signals is the time until a run ends that does not follow one."""
    errors = []
    for name, value in (tree.get("signal") or {}).items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name != "grace":  # from a file of the user's
            errors.append(f"signal.{name}: there is no such key{nearest(name, ['grace'])}")
        elif value is not None and not (number and 0 <= value < math.inf):
            errors.append(f"signal.grace={value}: must be seconds; 0 or null waits for ever")
    return errors


def chunk(tree: dict[str, Any]) -> list[str]:
    """An environment cannot execute more steps than the policy plans."""
    execute, horizon = inside(tree, "env.execute"), tree.get("horizon")
    if execute is None or horizon is None or execute <= horizon:
        return []
    return [
        f"env.execute={execute}: more steps than the policy plans (horizon={horizon}); "
        f"set env.execute to {horizon} or less, or horizon to {execute} or more"
    ]


def wishes(tree: dict[str, Any]) -> list[str]:
    """A plan is asked for by one number for each label that it was told in training."""
    want, labels = inside(tree, "policy.want"), inside(tree, "source.labels")
    if want is None or not isinstance(labels, list) or len(want) == len(labels):
        return []
    text = str([*want]).replace("None", "null").replace(" ", "")
    return [
        f"policy.want={text}: source.labels=[{','.join(labels)}] has {len(labels)}; give as many "
        "numbers from 0 to 1, or null where nothing is asked"
    ]


def heads(tree: dict[str, Any]) -> list[str]:
    """A transformer's width is shared out evenly among its heads."""
    nodes = [("policy", tree.get("policy"))]
    nodes += [(f"policy.{k}", v) for k, v in (tree.get("policy") or {}).items()]
    errors = []
    for place, node in nodes:
        if not isinstance(node, dict) or not {"width", "heads"} <= set(node):
            continue
        width, count = node["width"], node["heads"]
        if count >= 1 and width % count:
            errors.append(f"{place}.width={width}: not a multiple of heads={count}")
    return errors


def levels(tree: dict[str, Any]) -> list[str]:
    """A table of noise levels belongs to the path "betas", and bounds the integration steps."""
    policy = tree.get("policy") or {}
    if not {"path", "levels", "steps"} <= set(policy):
        return []
    table, steps, kind = policy["levels"], policy["steps"], policy.get("betas", "cosine")
    if (policy["path"] == "betas") != (table is not None):
        return [
            f"policy.levels={table}: policy.path={policy['path']} "
            + ("needs a number of noise levels" if table is None else "has no noise levels; null")
        ]
    if table is None and kind != "cosine":
        return [
            f"policy.betas={kind}: policy.path={policy['path']} has no table of noise levels; set "
            "policy.path=betas and policy.levels, or policy.betas=cosine"
        ]
    if table is not None and 1 <= table < steps:  # a table of no levels is refused as such
        return [f"policy.steps={steps}: more than the {table} noise levels (policy.levels)"]
    if table is not None and policy.get("grid") == "late" and steps**2 > table:
        return [
            f"policy.grid=late: its last of {steps} steps is 1/{steps**2} long, and {table} "
            f"noise levels lie further apart; set policy.levels={steps**2} or policy.grid=uniform"
        ]
    return []


def device(tree: dict[str, Any]) -> list[str]:
    """Names of devices; whether there is one is only known with torch."""
    name = tree.get("device")
    if name is None or re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        return []
    return [f"device={name!r}: must be auto, cpu, cuda or cuda:N"]


def environment(tree: dict[str, Any]) -> list[str]:
    """The environment's id is registered, or belongs to a package that is installed."""
    name = inside(tree, "env.id")
    if not isinstance(name, str):
        return []
    if ":" in name:
        return plugin(name)
    module, package = home(name)
    if module != "gymnasium":
        found = importlib.util.find_spec(module) is not None
        return [] if found else [f"env.id={name!r}: needs a package: {pip_install(package)}"]
    if files_of(name):
        return []
    from gymnasium import registry  # takes 0.1 s; imports neither torch nor mujoco

    if name in registry:
        return []
    return [f"env.id={name!r}: no such environment{suggest(name, list(registry))}"]


def engine(tree: dict[str, Any]) -> list[str]:
    """The backend's own package is installed; whether it has the task is only known with it."""
    lack = engine_lacks(str(inside(tree, "env.backend")))
    return [] if lack is None else [lack]


def suggest(name: str, ids: list[str]) -> str:
    """The nearest id, the newest version first when only the version is wrong."""
    stem = name.rpartition("-v")[0] or name
    same = sorted(i for i in ids if i.rpartition("-v")[0].lower() == stem.lower())
    return f"; did you mean {same[-1]!r}?" if same else nearest(name, ids)


def plugin(name: str) -> list[str]:
    """`module:Id` imports a module: one of a --config-dir folder, or one that was typed.

    A stored configuration may be somebody else's, so what stands in one alone imports nothing.
    """
    module = name.partition(":")[0]
    if not foreign(name):
        return []
    if module not in schema.trusted:
        return [
            f"env.id={name!r}: imports {module}, which only you can allow: add env.id={name} if it "
            "is an installed package that you trust, or --config-dir FOLDER with its file"
        ]
    if module.partition(".")[0] in sys.stdlib_module_names:
        return [f"env.id={name!r}: no such module of environments; {module} is Python's own"]
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # of a parent that is missing or broken
        found = False
    if found:
        return []
    return [
        f"env.id={name!r}: no module {module} can be imported here; install its package "
        f"(pip install -e FOLDER), or name the folder that holds {module.partition('.')[0]}.py "
        "with --config-dir"
    ]


def foreign(name: str) -> bool:
    """Whether an id names a module that neither is known nor lies in a --config-dir folder."""
    module, colon, _ = name.partition(":")
    if not colon or module in {known for known, _ in ELSEWHERE.values()}:
        return False
    try:
        schema.find(f"{module}.Id")
    except RheoError:
        return True
    return False


def world(tree: dict[str, Any]) -> list[str]:
    """A source that collects experience needs an environment."""
    source = tree.get("source") or {}
    if not source.get("_target_") or inside(tree, "env.id") is not None:
        return []
    needs = schema.from_source(source["_target_"]).slots.get("env", False)
    return ["env: has to be set (env=NAME); the source collects experience"] if needs else []


def program(tree: dict[str, Any]) -> list[str]:
    """A policy that another program exported is there."""
    path = inside(tree, "policy.path")
    if inside(tree, "policy._target_") != programs.EXPORTED or path is None:
        return []
    return [] if exists(path) else [f"policy.path={path}: there is no such file"]


def still(tree: dict[str, Any]) -> list[str]:
    """An encoder of images that does not learn is one that another run has trained."""
    if not inside(tree, "eye.frozen") or tree.get("init"):
        return []
    return ["eye.frozen=true: keeps the encoder of another run; add init=RUN, or leave it false"]


def data(tree: dict[str, Any], run: str | None = None) -> list[str]:
    """The data set is there, and has a head that can be read. run: the one that goes on with it."""
    errors, name = [], tree.get("data")
    how = settings_of_reader(tree.get("source"), name)
    for one in name if isinstance(name, list) else [name]:
        errors += lacking(one, how, run) if one else []
    return errors


def reader(node: Any, data: Any, place: str = "source") -> str | None:
    """The place of the node that reads the data: the one whose `path` they are."""
    if not isinstance(node, dict):
        return None
    if data is not None and node.get("path") == data:
        return place
    found = (reader(value, data, f"{place}.{key}") for key, value in node.items())
    return next((each for each in found if each is not None), None)


def settings_of_reader(source: Any, data: Any) -> dict[str, Any]:
    """The values of the node that reads the data."""
    place = reader(source, data)
    for key in (place or "").split(".")[1:]:
        source = source[key]
    return source if place else {}


def lacking(name: str, how: dict[str, Any], run: str | None) -> list[str]:
    """What is wrong with a data set before it is read."""
    from rheo.envs.data.catalogue import file_remedy  # h5py takes 0.1 s; not torch
    from rheo.envs.data.formats import opened
    from rheo.envs.data.pairs import refuse_other
    from rheo.envs.data.read import is_there, where
    from rheo.envs.data.recording import Reading, Refused

    try:
        file = str(where(name))
        if is_there(file) and how.get("_target_") == PAIRS:
            refuse_other(file)
            return []
        if is_there(file):
            with opened(file, Reading(**{k: how[k] for k in Reading._fields if k in how})):
                return []
    except Refused as error:
        return [str(error)]
    remedy = file_remedy(name)
    if "," in name:
        remedy += f"; several files are data=[{name}]"
    if run is not None:
        remedy += f"; if it lies elsewhere now: {command('resume', run, 'data=FILE')}"
    return [f"data={name!r}: no such file or data set; {remedy}"]


def trackers(tree: dict[str, Any]) -> list[str]:
    """Each tracker is a class, and its package is there."""
    errors = []
    for name, node in (tree.get("tracker") or {}).items():
        if not isinstance(node, dict) or "_target_" not in node:
            errors.append(
                f"tracker.{name}: is no tracker; its file has to begin with the line "
                "# @package tracker.NAME, and to name a class (_target_)"
            )
            continue
        package = packages.TRACKERS.get(name)
        if package is not None and not importable(name):
            lack = packages.lacking(f"tracker={name}", package)
            errors.append(f"{lack}; or go without, tracker=none")
    return errors


def base(tree: dict[str, Any]) -> list[str]:
    """The run to start from is there, and has saved itself."""
    name, part = tree.get("init"), tree.get("init_part")
    if not name:
        told = f"init_part={part}: there is no init=; add init=RUN, whose part is meant"
        return [] if part in (None, "auto") else [told]
    try:
        folder = existing(name)
    except RheoError as error:
        return [f"init={name!r}: no such run: {error}"]
    if any((folder / "ckpt").glob("*/manifest.json")):
        return []
    return [f"init={shown(folder)}: that run has no checkpoint yet"]
