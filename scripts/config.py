"""What the user typed -> one checked configuration, in under a second and without torch.

The YAML files of `configs` hold the values, constructors' signatures are the schema. Group choices
(`algo=rfm`) are composed by Hydra; values (`algo.lr=1e-3`) are put in here, so that every mistake
is reported at once. Interpolations may only name other keys: resolvers (`${oc.env:...}`) would let
a file read the machine, and are refused.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import annotations, checks, schema
from .errors import RheoError
from .inherit import inherit, inside
from .mixing import keep_own
from .overrides import RESOLVER, flags, is_group, known_option, parse, put

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

log = logging.getLogger("rheo")
HOME = Path(__file__).resolve().parents[1] / "configs"
ALIAS = re.compile(r"\$\{([\w.]+)\}")
ABSENT = object()
# settings of a policy that its weights do not depend on: free for another run or evaluation
AT_WILL = (
    *("policy.steps", "policy.sampler", "policy.eta", "policy.clip_x", "policy.clip_a"),
    "policy.deploy_scale",
)
# keys without which older runs were made, with the values that do what those runs did
ADDED = {
    "rheo.algos.awm_gae.AWMGAE": {"reduction": "mean", "error_max": None},
    "rheo.algos.awm_q.AWMQ": {"deviation": "batch", "relative": False},
    "rheo.algos.dsrl.DSRL": {
        **{"distill_noises": 1, "base_cache": 0, "relative": False, "ema_rate": 1.0},
    },
    "rheo.algos.expo.EXPO": {"base_cache": 0, "relative": False},
    "rheo.envs.datasets.Dataset": {"action_scale": "recorded", "filter": None},
    "rheo.envs.datasets.Transitions": {
        **{"n_step": 1, "action_scale": "recorded", "filter": None},
    },
    "rheo.envs.sources.Replay": {"n_step": 1},
}
NODE = "dict | None"
TOP = {
    "algo": "dict",
    "policy": "dict",
    "critic": NODE,
    "source": "dict",
    "env": NODE,
    "data": "str | None",
    "init": "str | None",
    "init_part": "Literal['auto', 'policy', 'base']",
    "steps": "int",
    "seed": "int",
    "device": "str",
    "name": "str | None",
    "log_every": "int",
    "eval_every": "int",
    "save_every": "int",
    "episodes": "int",
    "limits": "dict",
    "horizon": "int",
    "fast": "Literal['off', 'precision', 'compile'] | bool",
    "threads": "int",
    "recipe": "str | dict | None",
    "config_dir": "list[str]",
}


def compose(argv: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of `key=value` arguments and --config-dir flags.

    Raises RheoError that lists every mistake. `config_dir` holds the folders that were named.
    """
    folders, words = flags(argv)
    # the source reads the data, so their settings are keys of the source
    words = [re.sub(r"^data\.", "source.", word) for word in words]
    schema.allow(folders)
    roots = [HOME, *(Path(folder).expanduser().resolve() for folder in folders)]
    refuse_hidden(roots)
    errors: list[str] = []
    overrides = parse(words, errors)
    trust(overrides)
    groups = [one for one in overrides if is_group(one, roots)]
    empty = [one for one in groups if one.value() is None]
    chosen = [str(one.input_line) for one in groups if known_option(one, roots, errors)]
    chosen += [f"{one.key_or_group}=none" for one in empty if has_none(one.key_or_group)]
    if not any(one.key_or_group == "env" for one in groups):
        chosen += recorded_in(overrides)
    base = compose_groups(chosen, roots[1:], errors)
    base["config_dir"] = [str(root) for root in roots[1:]]
    for word in [word for word in chosen if word.startswith("source=")][-1:]:
        others = [other for other in chosen if not other.startswith("source=")]
        own = compose_groups(others, roots[1:], errors)["source"]
        errors += keep_own(base["source"], own, word)
    inherit(base, overrides, roots)
    values = [one for one in overrides if one not in groups]
    values += [one for one in empty if one.key_or_group in base and not has_none(one.key_or_group)]
    return finish(base, values, roots, errors, checks.data, checks.base)


def allow_typed(words: Sequence[str]) -> None:
    """`trust` for words that are not composed here; what is wrong with them is said elsewhere."""
    trust(parse([word for word in words if word.startswith("env.id=")], []))


def trust(overrides: "list[Override]") -> None:
    """A typed `env.id=MODULE:Id` is the user's own will to import that module."""
    ids = [str(one.value()) for one in overrides if one.key_or_group == "env.id"]
    schema.trusted.update(name.partition(":")[0] for name in ids if ":" in name)


def recorded_in(overrides: "list[Override]") -> list[str]:
    """The choice of the environment that the data were recorded in, when there is a file for it.

    So a D4RL set is scored without being told where.
    """
    names = [str(one.value()) for one in overrides if one.key_or_group == "data" and one.value()]
    if not names:
        return []
    from rheo.envs.recordings import played_in  # numpy and h5py, not torch

    try:
        env_id, alike = played_in(names[-1])
    except ValueError:  # the checks say what is wrong with the file
        return []
    found = [
        file.stem
        for file in sorted((HOME / "env").glob("*.yaml"))
        if env_id is not None and f"id: {env_id}" in file.read_text().splitlines()
    ]
    if found and not alike:
        text = "data=%s tells %s, which has other sizes here: the run is not evaluated there"
        log.warning(text, names[-1], env_id)
        return []
    lacking = checks.environment({"env": {"id": env_id}}) if found else []
    if lacking:
        log.warning("%s; without it the run is not evaluated in the data's environment", lacking[0])
    return [f"env={found[0]}"] if found and not lacking else []


def has_none(group: str) -> bool:
    """Whether a group has a file for nothing, whose keys others may refer to."""
    return (HOME / group / "none.yaml").is_file()


def load(folder: str | Path, argv: Sequence[str] = (), *, to_train: bool = False) -> dict[str, Any]:
    """The configuration of a run folder, with values changed by `argv`, checked anew.

    to_train: its data have to be there. A checkpoint does without them, and without the run that it
    started from, so a policy goes where they do not. A run made with --config-dir needs it again: a
    folder of somebody else's must not choose whose code runs. Raises RheoError.
    """
    folders, words = flags(argv)
    schema.allow(folders)
    config = stored(folder)
    lacking = config.get("config_dir") or []
    if lacking and not schema.allowed:
        raise RheoError(
            f"{folder} was made with classes from {lacking[0]}; if you trust them, add "
            f"--config-dir {lacking[0]}"
        )
    if lacking and folders:
        config["config_dir"] = [str(Path(name).expanduser().resolve()) for name in folders]
    errors: list[str] = []
    overrides = parse(words, errors)
    trust(overrides)
    mine = (config.get("env") or {}).get("id")
    for one in [one for one in overrides if one.key_or_group == "env.id" and one.value() != mine]:
        errors.append(f"{one.input_line}: fixed by the checkpoint, which is of {mine}")
    for one in [one for one in overrides if is_group(one, [HOME])]:
        errors.append(f"{one.input_line}: a run's {one.key_or_group} is fixed; set single values")
        overrides.remove(one)
    inputs = (checks.data,) if to_train else ()
    return finish(config, overrides, [HOME], errors, *inputs)


def complete(node: Any) -> None:
    """Writes into a run's configuration what it did before the keys of ADDED existed."""
    for value in node.values():
        if isinstance(value, dict):
            complete(value)
    for key, before in ADDED.get(str(node.get("_target_")), {}).items():
        node.setdefault(key, before)


def stored(folder: str | Path) -> dict[str, Any]:
    """A run folder's config.yaml, with the keys of ADDED that it lacks. Raises RheoError."""
    from omegaconf import OmegaConf

    file = Path(folder) / "config.yaml"
    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # yaml has no common base with OmegaConf's and the system's errors
        raise RheoError(f"{file}: not readable as a configuration: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise RheoError(f"{file}: holds no configuration")
    complete(config)
    config.setdefault("init_part", "auto")
    return {str(key): value for key, value in config.items()}


def refuse_hidden(roots: list[Path]) -> None:
    """Raises RheoError when a file of a --config-dir would be hidden by one of ours."""
    ours = [file.relative_to(HOME) for file in HOME.rglob("*.yaml")]
    for file in (root / name for root in roots[1:] for name in ours):
        if file.exists():
            raise RheoError(f"{file}: rheo has a file of that name; rename yours")


def compose_groups(choices: list[str], folders: list[Path], errors: list[str]) -> dict[str, Any]:
    """The composed files as a plain tree, interpolations not yet resolved."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    paths = ",".join("'file://" + str(folder).replace("'", "\\'") + "'" for folder in folders)
    search = [f"hydra.searchpath=[{paths}]"] if folders else []
    try:
        with initialize_config_dir(str(HOME), version_base=None, job_name="rheo"):
            config = hydra_compose("config", overrides=[*search, *choices])
    except (HydraException, OmegaConfBaseException) as error:
        raise RheoError(report([*errors, one_line(error)])) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "yaml":
            raise
        raise RheoError(report([*errors, f"a YAML file is broken: {one_line(error)}"])) from error
    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def finish(
    tree: dict[str, Any],
    overrides: "list[Override]",
    roots: list[Path],
    errors: list[str],
    *inputs: checks.Check,
) -> dict[str, Any]:
    """Puts values in, resolves, checks everything. Raises RheoError with all errors."""
    for one in overrides:
        put(tree, one, roots, errors)
    calls = [place for place, leaf in walk(tree) if isinstance(leaf, str) and RESOLVER.search(leaf)]
    if calls:
        errors += [f"{place}: resolvers are not evaluated; write the value" for place in calls]
        raise RheoError(report(errors))
    tree, followed = resolve(tree, errors)
    lacking = [place for place, leaf in walk(tree) if isinstance(leaf, str) and leaf == "???"]
    errors += [f"{place}: has to be set ({place}=...)" for place in lacking]
    for error in validate(tree):
        place = error.partition(":")[0]
        if place in lacking or any(known.startswith(f"{place}:") for known in errors):
            continue
        origin = followed.get(place)
        errors.append(f"{error}; it follows {origin}: set {origin}=..." if origin else error)
    errors += checks.program(tree) if errors else checks.run(tree, *inputs)
    if errors:
        raise RheoError(report(errors))
    return tree


def resolve(tree: dict[str, Any], errors: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree with interpolations replaced, and which key each replaced place follows."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    links = [(place, ALIAS.fullmatch(leaf)) for place, leaf in walk(tree) if isinstance(leaf, str)]
    followed = {place: link[1] for place, link in links if link}
    for place, other in loose(tree, followed):
        kind = str(inside(tree, f"{other.partition('.')[0]}._target_")).rpartition(".")[2]
        free = "none" if place.endswith("_norm.kind") else "VALUE"
        errors.append(f"{place}: follows {other}, which {kind} has not; set {place}={free}")
        put_at(tree, place, free)
    try:
        plain = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise RheoError(report([*errors, f"{error.full_key}: {one_line(error)}"])) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, followed


def loose(tree: dict[str, Any], followed: Mapping[str, str]) -> list[tuple[str, str]]:
    """Places that follow a key which is not there, as the policy's of a policy without it."""
    known = [place for place, _ in walk(tree)]
    return [
        (place, other)
        for place, other in followed.items()
        if not any(each == other or each.startswith(f"{other}.") for each in known)
    ]


def put_at(tree: dict[str, Any], place: str, value: Any) -> None:
    """Sets the value at a dotted key."""
    *path, last = place.split(".")
    for key in path:
        tree = tree[key]
    tree[last] = value


def walk(node: Any, place: str = "") -> list[tuple[str, Any]]:
    """All leaves of a tree with their full keys."""
    if isinstance(node, Mapping):
        pairs = [(f"{place}.{key}" if place else str(key), value) for key, value in node.items()]
    elif isinstance(node, list):
        pairs = [(f"{place}[{index}]", value) for index, value in enumerate(node)]
    else:
        return [(place, node)]
    return [leaf for inner, value in pairs for leaf in walk(value, inner)]


def validate(tree: dict[str, Any]) -> list[str]:
    """Errors of types and keys at the top and in every node with a `_target_`; fixes types."""
    errors = []
    for key in tree:
        tree[key], problem = annotations.coerce(TOP.get(key, "Any"), tree[key])
        if problem:
            errors.append(f"{key}: {problem}")
    for key, node in tree.items():
        errors += validate_node(node, key)
    return errors


def validate_node(node: Any, where: str) -> list[str]:
    """Errors of a node and of the nodes inside it."""
    if not isinstance(node, dict):
        return []
    errors = []
    if node.get("_target_", ABSENT) is None and len(node) == 1:
        return []  # a group's way to say "none"
    if "_target_" in node:
        try:
            values, errors = schema.check(node, schema.from_source(node["_target_"]), where)
            node.update(values)
        except RheoError as error:
            errors = [f"{where}._target_: {error}"]
    for key, value in node.items():
        errors += validate_node(value, f"{where}.{key}")
    return errors


def one_line(error: Exception) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def report(errors: list[str]) -> str:
    """One message of all errors."""
    if len(errors) == 1:
        return errors[0]
    return f"{len(errors)} errors in the configuration\n  " + "\n  ".join(errors)
