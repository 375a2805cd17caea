"""What the user typed -> one checked configuration, in under a second and without torch.

The YAML files of `configs` hold the values, constructors' signatures are the schema. Group choices
(`algo=rfm`) are composed by Hydra; values (`algo.lr=1e-3`) are put in here, so that every mistake
is reported at once. Interpolations may only name other keys (`${horizon}`): resolvers would let a
file read the machine, and all else that begins with `${` is refused.
"""

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from yaml import YAMLError

from rheo.envs.paths import absolute, expanded
from rheo.errors import RheoError

from ..store.vouch import refuse_misshapen, refuse_partial
from ..store.where import stored
from . import annotations, intent, programs, rules, schema, sizes
from .groups import compose_groups
from .inherit import inherit, tuned_in
from .intent import Typed
from .links import Links, unlinked
from .mixing import keep_own
from .overrides import SCRATCH, choice, is_group, parse, put
from .recorded import compared, kept_of_base, made_as_recorded, played, recorded_in
from .top import HOME, TOP, inside, walk
from .wording import covered, report, worded
from .words import flags
from .yamls import LINK, RESOLVER, refuse_growth, text_of

log = logging.getLogger("rheo")
SHARED = ("seed", "device", "threads", "fast", "precision")  # of both acts of the demo
USAGE = {
    "train": """\
usage: rheo train [key=value ...] [--config-dir DIR]
       rheo train algo=rfm env=hopper seed=1          from scratch
       rheo train algo=bc data=demos.npz              from recorded actions
       rheo train algo=reinflow init=RUN env=hopper   a run's policy, trained further
keys:  algo policy critic eye source env recipe   files of rheo/configs: rheo info algo lists them,
                       rheo info algo=rfm tells what their keys mean; policy/net=unet is one inside
       data init       recorded data, and the run to start from
       steps log_every eval_every save_every episodes   how long, and what between
       horizon seed device threads fast precision name limits.* signal.grace
       dry=true        show what would run (configuration, sizes, memory), and leave it""",
    "demo": f"""\
usage: rheo demo [key=value ...]
       first act: InvertedPendulum-v5 from scratch (recipe=demo, and the values given);
       second act: demonstrations of it with noise, a flow cloned from them, and the clone
       fine-tuned; left out where a value other than {", ".join(SHARED)} is given""",
}
NEEDED = "RUN"  # the init of an algorithm that cannot do without one
ABSENT = object()


def asked(argv: Sequence[str]) -> tuple[dict[str, Any], bool]:
    """What `rheo train` was asked, and whether it is only to be shown (dry=true)."""
    dry = [word for word in argv if word.startswith("dry=")]
    if set(dry) - {"dry=true", "dry=false"}:
        raise RheoError(f"{dry[-1]}: dry=true shows what would run, dry=false runs it")
    return train([word for word in argv if word not in dry]), "dry=true" in dry[-1:]


def train(argv: Sequence[str]) -> dict[str, Any]:
    """A run's configuration, after what has to be said of it.

    A command that does not say what to train is refused.
    """
    intent.refuse_bare(argv)
    config = compose(argv)
    for remark in intent.remarks(config, argv):
        log.warning(remark)
    return config


def demo(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What `rheo demo` was asked: the configuration of its first act, and the words."""
    return compose(["recipe=demo", *argv]), list(argv)


def compose(argv: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of `key=value` arguments and --config-dir flags.

    Raises RheoError that lists every mistake. `config_dir` holds the folders that were named.
    """
    errors: list[str] = []
    folders, words = flags(argv, errors)
    schema.allow(folders)
    roots = [HOME, *(expanded(folder).resolve() for folder in folders)]
    refuse_hidden(roots)
    overrides = parse(words, errors)
    trust(overrides)
    groups = [one for one in overrides if is_group(one, roots)]
    empty = [one for one in groups if one.value() is None and not one.is_delete()]
    chosen = [word for one in groups for word in choice(one, roots, errors)]
    chosen += [f"{one.key_or_group}=none" for one in empty if has_none(one.key_or_group)]
    algo, chosen = named_algo(chosen), compared(chosen, overrides, errors)
    told = played(overrides)
    if not any(one.key_or_group == "env" for one in groups):
        chosen += recorded_in(told) or tuned_in(overrides)
    base = compose_groups(chosen, roots[1:], errors)
    made_as_recorded(base, told, overrides, chosen)
    base |= {"config_dir": [str(root) for root in roots[1:]], "programs": {}}
    for word in [word for word in chosen if word.startswith("source=")][-1:]:
        others = [other for other in chosen if not other.startswith("source=")]
        own = compose_groups(others, roots[1:], errors)["source"]
        errors += keep_own(base["source"], own, word)
    values = [one for one in overrides if one not in groups]
    values += [one for one in empty if one.key_or_group in base and not has_none(one.key_or_group)]
    typed = Typed({one.key_or_group: str(one.input_line) for one in groups}, {}, algo)
    values = settings_of_data(base, values, typed, errors)
    typed = typed._replace(given=frozenset(one.key_or_group for one in values))
    demand_base(base, values)
    inherit(base, overrides, roots)
    kept_of_base(base, told, values)
    unread = partial(intent.unread, algo=typed.algo)
    known = (rules.data, rules.base, rules.trackers, sizes.crowded)
    inputs = (*known, unread, intent.unfitted, intent.pulled, intent.uncoded)
    for remark in unlinked(base):
        log.warning(remark)
    tree = finish(base, values, roots, errors, inputs, typed)
    programs.settle(tree, given=not tree["init"] or "policy.path" in typed.given)
    return tree


def named_algo(chosen: list[str]) -> str:
    """The word that chooses the algorithm."""
    named = [word for word in chosen if word.startswith("algo=")]
    return named[-1] if named else "this algorithm"


def inside_target(tree: Mapping[str, Any]) -> str:
    """The class of the policy."""
    return str(inside(tree, "policy._target_"))


def settings_of_data(
    base: dict[str, Any], values: list[Override], typed: Typed, errors: list[str]
) -> list[Override]:
    """The values, those of data.KEY given to the part that reads the data."""
    place, kept = rules.reader(base.get("source"), "${data}"), []
    for one in values:
        key = one.key_or_group
        if not key.startswith("data."):
            kept.append(one)
        elif place is None:
            errors.append(f"{key}: {typed.algo} reads no recorded data, so it has no such setting")
        else:
            one.key_or_group = f"{place}{key.removeprefix('data')}"
            typed.keys[one.key_or_group] = key
            kept.append(one)
    return kept


def demand_base(base: dict[str, Any], values: list[Override]) -> None:
    """Settles whether a run needs init=RUN: where its algorithm's file says so.

    A policy that comes from elsewhere (an exported program, a class of the user's) is a base by
    itself; init=scratch is the way to say that random weights are meant.
    """
    needed = asks = base.get("init") == NEEDED
    if inside_target(base) == programs.EXPORTED or not inside_target(base).startswith("rheo."):
        needed = False
    if asks:
        base["init"] = "???" if needed else None
    for one in values:
        if one.key_or_group == "init" and one.value() is None and needed:
            one._value = "???"
        elif one.key_or_group == "init" and one.value() == SCRATCH:
            one._value = None


def allow_typed(words: Sequence[str]) -> None:
    """`trust` for words that are not composed here; what is wrong with them is said elsewhere."""
    trust(parse([word for word in words if word.startswith("env.id=")], []))


def trust(overrides: list[Override]) -> None:
    """A typed `env.id=MODULE:Id` is the user's own will to import that module."""
    ids = [str(one.value()) for one in overrides if one.key_or_group == "env.id"]
    schema.trusted.update(name.partition(":")[0] for name in ids if ":" in name)


def has_none(group: str) -> bool:
    """Whether a group has a file for nothing, whose keys others may refer to."""
    return (HOME / group / "none.yaml").is_file()


def load(folder: str | Path, argv: Sequence[str] = (), *, to_train: bool = False) -> dict[str, Any]:
    """The configuration of a run folder, with values changed by `argv`, checked anew.

    to_train: its data have to be there. A checkpoint does without them, and without the run that it
    started from, so a policy goes where they do not; data=FILE says where they are now. A run made
    with --config-dir or a program needs it named again (`programs`): a folder of somebody else's
    must not choose whose code runs.
    Raises RheoError.
    """
    folders, words = flags(argv)
    schema.allow(folders)
    config = stored(folder, [word.partition("=")[0] for word in words])
    refuse_misshapen(folder, config)
    refuse_partial(folder, config)
    lacking = config.get("config_dir") or []
    if lacking and not schema.allowed:
        raise RheoError(
            f"{folder} was made with classes from {lacking[0]}; if you trust them, add "
            f"--config-dir {shlex.quote(lacking[0])}"
        )
    if lacking and folders:
        config["config_dir"] = [str(expanded(name).resolve()) for name in folders]
    errors: list[str] = []
    overrides = parse(words, errors)
    trust(overrides)
    mine = (config.get("env") or {}).get("id")
    for one in [one for one in overrides if one.key_or_group == "env.id" and one.value() != mine]:
        errors.append(f"{one.input_line}: fixed by the checkpoint, which is of {mine}")
    retrack(config, overrides, folders, errors)
    for one in [one for one in overrides if is_group(one, [HOME])]:
        errors.append(f"{one.input_line}: a run's {one.key_or_group} is fixed; set single values")
        overrides.remove(one)
    training = (partial(rules.data, run=str(folder)), rules.trackers, sizes.crowded)
    inputs = training if to_train else ()
    typed = Typed({}, {}, "this run")
    if to_train and isinstance(config.get("data"), str):  # older runs stored it as it was typed
        move_data(config, absolute(config["data"]))
    for one in [one for one in overrides if one.key_or_group == "data"]:
        move_data(config, one.value())
    for one in [one for one in overrides if one.key_or_group == "policy.path"]:
        if inside_target(config) == programs.EXPORTED:
            one._value = absolute(str(one.value()))
        else:
            text = f"{one.input_line}: fixed by the checkpoint (it names no file here)"
            errors.append(f"{text}; to change it, train a new run with init={folder}")
    config = finish(config, overrides, [HOME], errors, inputs, typed)
    programs.compare(config, folder, any(one.key_or_group == "policy.path" for one in overrides))
    return config


def retrack(
    config: dict[str, Any], overrides: list[Override], folders: list[str], errors: list[str]
) -> None:
    """Gives a stored run the trackers of tracker=: those that it had keep their settings."""
    roots = [HOME, *(expanded(folder).resolve() for folder in folders)]
    for one in [one for one in overrides if one.key_or_group == "tracker"]:
        overrides.remove(one)
        chosen = choice(one, roots, errors)
        now, before = compose_groups(chosen, roots[1:], [])["tracker"], config.get("tracker") or {}
        config["tracker"] = {name: before.get(name, node) for name, node in now.items()}


def move_data(config: dict[str, Any], data: Any) -> None:
    """Tells a stored run, and the part of it that reads its data, where these are now."""
    node = rules.settings_of_reader(config.get("source"), config.get("data"))
    if node:
        node["path"] = config["data"] = data


def refuse_hidden(roots: list[Path]) -> None:
    """Raises RheoError when a file of a --config-dir would be hidden by one of ours, and for one
    that is not looked into (`yamls`).
    """
    ours = [file.relative_to(HOME) for file in HOME.rglob("*.yaml")]
    for folder in (root / name for root in roots[1:] for name in {file.parent for file in ours}):
        for file in sorted(folder.glob("*.yaml")):
            with suppress(YAMLError, OSError, UnicodeDecodeError):  # Hydra tells of it, if chosen
                text_of(file)
    for file in (root / name for root in roots[1:] for name in ours):
        if file.exists():
            raise RheoError(f"{file}: rheo has a file of that name; rename yours")


def finish(
    tree: dict[str, Any],
    overrides: list[Override],
    roots: list[Path],
    errors: list[str],
    inputs: Sequence[rules.Check],
    typed: Typed,
) -> dict[str, Any]:
    """Puts values in, resolves, checks everything. Raises RheoError with all errors."""
    for one in overrides:
        put(tree, one, roots, errors, typed.algo)
    calls = [place for place, leaf in walk(tree) if isinstance(leaf, str) and RESOLVER.search(leaf)]
    if calls:
        errors += [f"{place}: resolvers are not evaluated; write the value" for place in calls]
        raise RheoError(report(errors))
    refuse_growth(tree)
    tree, followed, judged = resolve(tree, typed, errors)
    for place in [place for place, leaf in walk(tree) if isinstance(leaf, str) and leaf == "???"]:
        own = intent.baseless(typed.algo, tree) if place == "init" else ""
        errors.append(own or f"{place}: has to be set ({place}=...)")
        judged.add(place)
    for place, error in [(re.split("[:=]", error)[0], error) for error in validate(tree)]:
        lead = followed.get(place, place)
        if not {place, lead} & judged:
            errors.append(worded(place, error, tree, followed, typed))
            judged |= {place, lead}
    found = rules.run(tree, inputs, careful=bool(errors))
    errors += [error for error in found if not covered(error, judged)]
    if errors:
        raise RheoError(report(errors))
    return tree


def resolve(
    tree: dict[str, Any], typed: Typed, errors: list[str]
) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """The tree with interpolations replaced, which key each replaced place follows, and the places
    whose key is not there (said once, and left empty).
    """
    leaves = [(place, LINK.fullmatch(leaf)) for place, leaf in walk(tree) if isinstance(leaf, str)]
    followed = {place: link[1] for place, link in leaves if link}
    links = Links(tree)
    try:
        plain = links.plain(tree)
    except RheoError as error:
        raise RheoError(report([*errors, str(error)])) from error
    for place, link in links.lost.items():
        kind = inside(tree, f"{link.partition('.')[0]}._target_")
        lack = f"which {str(kind).rpartition('.')[2]} has not" if kind else "which is not there"
        remedy = f"{place}={'none' if place.endswith('.kind') else '...'}"
        errors.append(f"{place}: follows {link}, {lack}; set {remedy}")
    return plain, followed, {*links.lost, *links.unset}


def validate(tree: dict[str, Any]) -> list[str]:
    """Errors of types and keys at the top and in every node with a `_target_`; fixes types."""
    errors = []
    for key in tree:
        tree[key], problem = annotations.coerce(TOP.get(key, "Any"), tree[key])
        if problem:
            errors.append(f"{key}{problem}")
    for key, node in tree.items():
        errors += validate_node(node, key)
    return errors


def validate_node(node: Any, where: str) -> list[str]:
    """Errors of a node and of the nodes inside it."""
    if not isinstance(node, dict):
        return []
    errors = []
    if node.get("_target_", ABSENT) is None:  # a group's way to say "none"
        others = ", ".join(key for key in node if key != "_target_")
        own = f"{where}: there is none, which could have {others}; leave out {where}=none"
        return [own] if others else []
    if "_target_" in node:
        try:
            values, errors = schema.check(node, schema.from_source(node["_target_"]), where)
            node.update(values)
        except RheoError as error:
            errors = [f"{where}._target_: {error}"]
    for key, value in node.items():
        errors += validate_node(value, f"{where}.{key}")
    return errors
