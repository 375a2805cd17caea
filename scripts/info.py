"""`rheo info`: what there is to choose from, and what each choice's keys mean. Without torch."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from rheo.envs.packages import home, importable, pip_install
from rheo.errors import RheoError, nearest

from .config import meanings, schema
from .config.annotations import shown
from .config.groups import compose_groups
from .config.inherit import word
from .config.suites import suites
from .config.top import HOME, MEANINGS, NESTED, TOP, inside, suite_of, walk
from .config.words import flags

USAGE = {
    "info": """\
usage: rheo info                  which groups there are to choose from
       rheo info algo             the algorithms, by what they need; likewise env, policy, critic,
                                  source, eye, recipe, data (layouts that are read) and suite
       rheo info run              keys beside the groups: steps, seed, horizon, init, limits.q, ...
       rheo info algo=rfm         its keys: value, type, meaning, and the papers""",
}
GROUPS = {  # what is listed by its own file, and what it is
    "algo": "what is learned from experience",
    "policy": "networks that act",
    "policy/net": "what is inside of a flow",
    "critic": "networks that judge",
    "eye": "encoders of images",
    "source": "where experience comes from",
    "env": "environments",
    "tracker": "where metrics are sent to as well: tracker=wandb, tracker=[wandb,mlflow]",
    "recipe": "settings that belong together: recipe=NAME beside what is yours",
}
OTHERS = {  # what is listed besides
    "data": "layouts of recorded data",
    "suite": "lists of tasks with their protocol: rheo suite NAME algo=A",
    "run": "keys of a run beside its groups: steps, seed, horizon, ...",
}
SUITES = {  # the classes that explain the options of a suite's environments
    "robosuite": "rheo.envs.manipulation.robosuite_tasks.Robosuite",
    "metaworld": "rheo.envs.manipulation.metaworld_tasks.MetaWorld",
}
PACKAGE = re.compile(r"# @package .*\n")  # Hydra's line for where a file's values go
CLONE, OFFLINE, SCRATCH, TUNE, STEER = "clone", "offline", "from scratch", "tune", "steer"
KINDS = {  # kind -> what a command of it has to name
    CLONE: "data=FILE",
    OFFLINE: "data=FILE, with rewards",
    SCRATCH: "env=NAME",
    TUNE: "init=RUN env=NAME",
    STEER: "init=RUN env=NAME; the base stays as it is",
}
# by the file of their source
RECORDED = {"dataset": CLONE, "transitions": OFFLINE, "plans": OFFLINE}
TUNED_BY = {  # likewise
    "pairs": "init=RUN data=PAIRS.npz",
    "labels": "init=RUN data=FILE",
    "waypoints": "init=RUN data=FILE, with columns of goals",
}
FORMATS = {
    "NAME.npz": "observations, actions [, rewards, terminals, timeouts, episode_ends]",
    "NAME.hdf5": "D4RL's layout, robomimic's, ManiSkill's, ALOHA's or Rheo's own",
    "hopper-medium-v2": "a D4RL set by its name, once `rheo data fetch` brought it",
    "cube-single-play-singletask-v0": "a single task of OGBench's sets, fetched likewise",
    "minari:ID": "a Minari set (pip install 'rheo-rl[minari]')",
    "FOLDER": "a LeRobot set, a zarr replay buffer (PushT, UMI), or episodes one by one",
    "[a.npz,b.npz]": "several, end to end",
    "PAIRS.npz": "observations, chosen, rejected [, chunks, returns], of algo=crd, dpo and d3po",
}


class Information(NamedTuple):
    """What `rheo info` was asked."""

    group: str | None  # algo, env, ...; None: which groups there are
    choice: str | None  # one of them


class Choice(NamedTuple):
    """A file of configs."""

    name: str
    tree: dict[str, Any]  # its own values, those of files it is made of under them
    note: str  # what stands above them
    source: str | None  # the file of configs/source that it chooses


def asked(argv: Sequence[str]) -> Information:
    """`rheo info [GROUP | GROUP=NAME]`. Raises RheoError for more words than that."""
    folders, words = flags(argv)
    if folders or len(words) > 1:
        raise RheoError(USAGE["info"])
    group, equals, choice = (words[0] if words else "").partition("=")
    return Information(group or None, choice if equals else None)


def main(wanted: Information) -> int:
    """Prints the list of groups, one group, or one choice with its keys. Raises RheoError."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    group, choice = wanted
    known = [*GROUPS, *OTHERS]
    if group is not None and group not in known:
        raise RheoError(
            f"info {group}: no such group{nearest(group, known)}; `rheo info` lists them"
        )
    if group == "data" and choice is not None:
        raise RheoError(f"info data={choice}: `rheo data info {choice}` says what is in a file")
    if group == "run" and choice is not None:
        raise RheoError(f"info run={choice}: `rheo info run` lists the keys; a run has config.yaml")
    if group is None:
        print(overview())
    elif group == "suite":
        print("\n".join(of_suites(width, choice)))
    elif choice is not None:
        print(one(group, choice, width))
    elif group == "data":
        print(columns([(name, "", text) for name, text in FORMATS.items()], width))
    elif group == "run":
        print("\n\n".join(lines_of(of_run(), width)))
    else:
        print(listing(group, width))
    return 0


def overview() -> str:
    """The groups, each with the word that lists it."""
    rows = [(group, str(len(names(group))), text) for group, text in GROUPS.items()]
    counts = {"data": len(FORMATS), "suite": len(suites()), "run": len(MEANINGS)}
    rows += [(name, str(counts[name]), text) for name, text in OTHERS.items()]
    lines = [f"  rheo info {group:11} {count:>3}  {text}" for group, count, text in rows]
    return "\n".join(
        [
            *lines,
            "",
            "rheo info algo=rfm   its keys with types, values and meaning; likewise the others",
        ]
    )


def of_suites(width: int, choice: str | None = None) -> Iterator[str]:
    """The field's suites, or one, each with tasks and protocol. Raises RheoError for none such."""
    every = suites()
    if choice is not None and choice not in every:
        raise RheoError(f"suite={choice}: there is none{nearest(choice, every)}")
    for name, one in every.items() if choice is None else [(choice, every[choice])]:
        yield f"{name}: {one['about']}"
        ((key, values),) = one["tasks"].items()
        words = [f"{key}={word(value)}" for key, value in one["words"].items()]
        for line in (f"{key}={', '.join(values)}", " ".join(words)):
            yield textwrap.fill(line, width, initial_indent="    ", subsequent_indent="      ",
                                break_on_hyphens=False)  # fmt: skip


def names(group: str) -> list[str]:
    """The choices of a group."""
    files = sorted((HOME / group).glob("*.yaml"))
    return [file.stem for file in files if file.stem not in ("base", "none")]


def read(group: str, name: str) -> Choice:
    """A file and those of its own group that it begins with."""
    text = (HOME / group / f"{name}.yaml").read_text()
    tree, source = yaml.safe_load(text) or {}, None
    merged: dict[str, Any] = {}
    for item in tree.pop("defaults", []):
        key, value = next(iter(item.items())) if isinstance(item, Mapping) else (str(item), None)
        if value is None and key.isidentifier() and key != "_self_":
            base = read(group, key)
            merged, source = deepened(merged, base.tree), base.source
        elif key.rpartition("/")[2] == "source":
            source = str(value)
    note = PACKAGE.split(text, maxsplit=1)[-1]
    lines = []
    for line in note.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return Choice(name, deepened(merged, tree), " ".join(lines), source)


def deepened(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with another one's values above its own."""
    merged = dict(under)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = deepened(merged[key], value) if nested else value
    return merged


def target(choice: Choice, group: str) -> str | None:
    """The class or function that a choice names."""
    node = choice.tree.get(group) if group == "algo" else choice.tree
    return node.get("_target_") if isinstance(node, Mapping) else None


def kind(choice: Choice) -> str:
    """Of an algorithm: what it does, told by its source, its base and what it deploys."""
    if choice.source in RECORDED:
        return RECORDED[str(choice.source)]
    if choice.tree.get("init") is None:
        return SCRATCH
    return STEER if meanings.has(str(target(choice, "algo")), "beyond") else TUNE


def line(choice: Choice, group: str) -> str:
    """A choice in a sentence: what its file says above its values, else its class."""
    if choice.note:
        return meanings.sentence(choice.note)
    made = target(choice, group)
    return "" if made is None else meanings.title(made)


# ---- what is printed -----------------------------------------------------------------------------


def listing(group: str, width: int) -> str:
    """The choices of a group, a line or two each."""
    found = [read(group, name) for name in names(group)]
    if group == "env":
        rows = [
            (
                one.name,
                str(one.tree.get("id")).replace("???", "(env.id=...)"),
                " ".join([one.note, *lacking(one)]),
            )
            for one in found
        ]
        return columns(rows, width)
    if group != "algo":
        return columns([(one.name, "", line(one, group)) for one in found], width)
    parts = []
    for name, needs in KINDS.items():
        rows = [(one.name, "", line(one, group)) for one in found if kind(one) == name]
        parts.append(f"{name}: needs {needs}\n{columns(rows, width)}")
    return "\n\n".join(parts)


def lacking(choice: Choice) -> list[str]:
    """What has to be installed for an environment."""
    module, package = home(str(choice.tree.get("id")))
    return [] if importable(module) else [f"(needs {package})"]


def columns(rows: list[tuple[str, str, str]], width: int) -> str:
    """Names, what stands beside them, and a text that is wrapped under itself."""
    first = max((len(name) for name, _, _ in rows), default=0)
    second = max((len(beside) for _, beside, _ in rows), default=0)
    lines = []
    for name, beside, text in rows:
        lead = f"  {name:{first}}  " + (f"{beside:{second}}  " if second else "")
        lines.append(wrapped(text, lead, " " * len(lead), width).rstrip())
    return "\n".join(lines)


def wrapped(text: str, lead: str, indent: str, width: int) -> str:
    """A text in lines of a width; an empty one is its lead."""
    room = max(width, len(indent) + 30)
    return textwrap.fill(text, room, initial_indent=lead, subsequent_indent=indent) or lead


def one(group: str, name: str, width: int) -> str:
    """A choice with all of its keys. Raises RheoError for one that there is not."""
    known = names(group)
    if name not in known:
        raise RheoError(f"{group}={name}: no such {group}{nearest(name, known)}")
    choice = read(group, name)
    made = target(choice, group)
    told = "" if made is None or group == "env" else f": {meanings.title(made)}"  # as its note says
    about = [f"{group}={name}{told}"]
    if group == "algo":
        needs = TUNED_BY.get(str(choice.source), KINDS[kind(choice)].partition(";")[0])
        about.append(f"{kind(choice)}: rheo train algo={name} {needs}")
    about += [choice.note] if choice.note else []
    papers = meanings.papers(made) if made else []
    about += [f"papers: {', '.join(papers)}"] if papers else []
    if group == "env" and lacking(choice):
        about.append(f"not installed: {pip_install(home(str(choice.tree.get('id')))[1])}")
    about += [f"values: configs/{group}/{name}.yaml" + (f", class: {made}" if made else "")]
    head = "\n".join(wrapped(text, "", "  ", width) for text in about)
    if group == "recipe":
        rows = [f"{place} = {word(value)}" for place, value in walk(choice.tree)]
        return "\n".join([head, "", *rows])
    place, node = composed(group, choice)
    suite = suite_of(str(node["id"])) if group == "env" and node["id"] != "???" else name
    return "\n\n".join([head, *lines_of(described(place, node, suite), width)])


def composed(group: str, choice: Choice) -> tuple[str, dict[str, Any]]:
    """Where a choice stands and its whole node: its own values, not those an algorithm gives it."""
    place = f"tracker.{choice.name}" if group == "tracker" else group.replace("/", ".")
    if group == "algo":
        return place, inside(compose_groups([f"algo={choice.name}"], [], []), place) or {}
    words = ["algo=bc", f"{group}={choice.name}"]
    return place, deepened(inside(compose_groups(words, [], []), place) or {}, choice.tree)


class Key(NamedTuple):
    """A key of a configuration."""

    place: str  # algo.learn.clip
    value: str  # as it ships
    kind: str  # what values it takes; empty where its constructor does not say
    meaning: str


def lines_of(found: Sequence[Key], width: int) -> list[str]:
    """Keys, a few lines each."""
    lines = []
    for key in found:
        lead = f"{key.place} = {key.value}" + (f"    ({key.kind})" if key.kind else "")
        text = wrapped(key.meaning, " " * 6, " " * 6, width) if key.meaning else ""
        lines.append(lead + (f"\n{text}" if text else ""))
    return lines


def of_run() -> list[Key]:
    """The keys of a run beside its groups, as they ship."""
    tree = yaml.safe_load((HOME / "config.yaml").read_text())
    kinds = {**TOP, **NESTED}
    return [
        Key(place, word(inside(tree, place)), shown(kinds[place]), meaning)
        for place, meaning in MEANINGS.items()
    ]


def described(place: str, node: Mapping[str, Any], suite: str = "") -> list[Key]:
    """Every key of a node, and after them those of the nodes inside it.

    suite: of an environment's node, whose options are told apart.
    """
    made = node.get("_target_")
    if made is None:
        return []
    types, told = schema.from_source(made).keys, meanings.of_keys(made)
    own, inner = [], []
    for key, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            inner += described(f"{place}.{key}", value)
        elif key == "options" and value:
            inner += options_of(suite, f"{place}.{key}", value)
        elif key in types:  # others come from the algorithm that it was composed with
            own.append(Key(f"{place}.{key}", word(value), shown(types[key]), told.get(key, "")))
    return [*own, *inner]


def options_of(suite: str, place: str, options: Mapping[str, Any]) -> list[Key]:
    """What an environment's file sets of its constructor's own options."""
    told = meanings.of_all(SUITES[suite]) if suite in SUITES else {}
    return [
        Key(f"{place}.{key}", word(value), "", told.get(key, "")) for key, value in options.items()
    ]
