"""What the verbs were asked that work on runs and files: words read before torch is imported.

`rheo train` and `rheo demo` are asked for a configuration: see compose.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rheo.envs.paths import LAYOUTS, expanded, layout_of
from rheo.errors import RheoError, nearest

from ..store.where import existing
from . import branching
from .top import (
    AT_ANY_START,
    EVAL_SEED,
    FREE,
    ON_RESUME,
    OPTIONS,
    PLACES,
    changes,
    elsewhere,
    files_of,
    suite_of,
)
from .words import (
    Option,
    Words,
    count,
    divide,
    flags,
    natural,
    number,
    one_of,
    one_run,
    positive,
    switch,
    values,
)

USAGE = {
    "eval": """\
usage: rheo eval RUN [episodes=50] [device=cpu] [ref_min=RETURN ref_max=RETURN]
                 [env.execute=1] [policy.steps=4] [seed=100000]
                 [env=NAME] [env.id=ID] [env.options.KEY=VALUE] [env.workers=N]
                 [env.cost.kind=speed] [env.cost.limit=SPEED]
                 [steer=best|soft|rlg|svdd|doob|inpaint|climb,... steer.n=16
                  steer.reference=RUN ...]""",
    "resume": """\
usage: rheo resume RUN [steps=N] [data=FILE] [device=NAME] [env.workers=N] [tracker=NAME]
       rheo resume RUN --restart           from its beginning, where its checkpoints are lost
       rheo resume RUN --without-damaged   without the rows of its replay that are damaged""",
    "compare": """\
usage: rheo compare RUN... [metric=score|return|success_once|success_at_end] [out=TABLE.md]
                    [with=KEY=VALUE] [columns=data|env] [group=config|name]
                    [minutes=M] [reach=VALUE,...] [curves=PICTURE.png]
       the last checkpoint's largest evaluation of every run (rheo eval RUN episodes=50), or
       the one with a changed value (with=deploy_scale=0); columns: a method a row and a
       data set or environment a column, each cell the IQM of all seeds' episodes;
       group=name: one row by the folders' names without -sSEED, whatever their settings;
       minutes: the last evaluation within so much training; reach: frames of every seed
       until an evaluation on its way is at least that good; curves: return against frames
       and against minutes, as a picture""",
    "collect": """\
usage: rheo collect RUN|ACTOR.npz|random out=FILE [env=NAME] [steps=N | episodes=N]
                    [noise=0] [sample=true|false] [seed=0] [num_envs=20]
       rheo collect set=random|medium|medium_replay|medium_expert|expert out=FILE
                    env=NAME actors=FOLDER|FILE,FILE,... [steps=1000000]
       rheo collect set=scripted out=FILE env=lift|can|fetch_reach|fetch_push|
                    fetch_pick_and_place|metaworld/TASK|cube-single-singletask-task1-v0|...
                    [episodes=100] [noise=0] [keep=success|all] [past=N] [seed=0]
options: layout=npz|d4rl|robomimic   how the file is written: npz, or .hdf5 in a layout
         past=N   steps that a demonstration goes on after its task is solved; 5, and where
                  success ends no episode (Fetch) until its time is up
"""
    + branching.USAGE,
    "checkpoint": """\
usage: rheo checkpoint verify RUN    a line a file: whether checkpoints, configuration, log,
                                     evaluations and programs are as they were written; else 3""",
    "doctor": "usage: rheo doctor",
}
# ------------------------------------------------------------------ runs

SUCCESS = ("success_once", "success_at_end")


class References(NamedTuple):
    """The returns that a score of 0 and of 100 stand for."""

    low: float
    high: float
    origin: str


class Evaluation(NamedTuple):
    """What `rheo eval` was asked."""

    name: str  # of the run
    flagged: list[str]
    episodes: int
    values: list[str]  # values of the configuration to change
    references: References | None  # given by the user
    steer: dict[str, str]  # words of steer=; empty: the run's own deployment
    world: list[str]  # words of another environment
    seed: int  # of the initial states and the noise


def a_return(text: str) -> float:
    """Reads a return."""
    try:
        return number(text)
    except ValueError as error:
        raise ValueError("a return is needed, a number like 3234.3") from error


EVALUATION = {
    **{"episodes": Option(50, count), "seed": Option(EVAL_SEED, natural)},
    **{"ref_min": Option(None, a_return), "ref_max": Option(None, a_return)},
}


def evaluate(argv: Sequence[str]) -> Evaluation:
    """`rheo eval`: the run, what of it changes, and how it is measured. Raises RheoError."""
    words = divide(argv, OPTIONS)
    name = one_run(words, USAGE["eval"])
    existing(name)
    steer, changed, world, rest = flags_of(words.options), [], [], []
    for word in words.options:
        key = word.partition("=")[0]
        if changes(key):
            changed.append(word)
        elif elsewhere(key):
            world.append(word)
        elif key in EVALUATION:
            rest.append(word)
        elif key not in steer:
            known = nearest(key, [*EVALUATION, *PLACES, *FREE, "steer", "env", "env.id"])
            raise RheoError(f"unknown option {key!r}{known}; the run's own values are used")
    given = values(rest, EVALUATION, "")
    references = given_references(given["ref_min"], given["ref_max"])
    how = given["episodes"], changed, references, steer, world, given["seed"]
    return Evaluation(name, words.flagged, *how)


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """The words of steering among key=value words. Raises RheoError for numbers without steer=."""
    mine = [word for word in words if word.partition("=")[0].partition(".")[0] == "steer"]
    found = dict(word.split("=", 1) for word in mine)
    if found and "steer" not in found:
        raise RheoError(f"{next(iter(found))} without steer=; add steer=best, for example")
    return found


def given_references(low: float | None, high: float | None) -> References | None:
    """The references on the command line, both or none."""
    if low is None and high is None:
        return None
    if low is None or high is None:
        have, other = ("ref_max", "ref_min") if low is None else ("ref_min", "ref_max")
        raise RheoError(
            f"{have} without {other}: a score needs the return that is 0 (ref_min, a random "
            f"policy's) and the one that is 100 (ref_max, an expert's); add {other}="
        )
    if low >= high:
        raise RheoError(f"ref_min={low:g} is not below ref_max={high:g}: 0 and 100 are exchanged")
    return References(low, high, "given on the command line")


class Resuming(NamedTuple):
    """What `rheo resume` was asked."""

    name: str  # of the run
    words: Words  # what of it changes
    restart: bool = False  # from its beginning, where there is nothing to go on from
    sparing: bool = False  # without rows of the replay that are damaged


FLAGS = {"--restart": "restart", "restart=true": "restart", "--without-damaged": "sparing"}
FLAGS |= {"without_damaged=true": "sparing"}


def resume(argv: Sequence[str]) -> Resuming:
    """`rheo resume`: the run, and values to change. Raises RheoError for what is fixed."""
    given = [word for word in argv if word in FLAGS]
    words = divide([word for word in argv if word not in given], OPTIONS)
    name = one_run(words, USAGE["resume"])
    existing(name)
    for word in words.options:
        key = word.partition("=")[0]
        # env.id allows the code of the run's environment; another one is refused there
        if key not in (*ON_RESUME, "env.id") and key.partition(".")[0] not in AT_ANY_START:
            remedy = f"to change it, train a new run with init={name}"
            raise RheoError(f"{word}: fixed by the checkpoint{nearest(key, ON_RESUME)}; {remedy}")
    if len(given) > 1:
        raise RheoError(f"{' and '.join(given)}: one of them is meant")
    return Resuming(name, words, **{FLAGS[word]: True for word in given})


def checkpoint(argv: Sequence[str]) -> str:
    """`rheo checkpoint verify`: the run. Raises RheoError."""
    usage = USAGE["checkpoint"]
    if not argv or argv[0] != "verify":
        raise RheoError(usage)
    return one_run(divide(argv[1:], ()), usage)


def thresholds(text: str) -> list[float]:
    """Reads numbers with commas between them."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError("numbers are needed, with commas between them") from error


COMPARISON = {
    "metric": Option(None, one_of("score", "return", *SUCCESS)),
    **{"out": Option(None), "with": Option(""), "curves": Option(None)},
    "columns": Option(None, one_of("data", "env")),
    "group": Option("config", one_of("config", "name")),
    **{"minutes": Option(None, positive), "reach": Option(None, thresholds)},
}


def compare(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """`rheo compare`: the runs, and how they are compared. Raises RheoError."""
    usage, words = USAGE["compare"], divide(argv, COMPARISON)
    if words.flagged:
        raise RheoError(f"--config-dir: nothing of a run is built to compare it\n{usage}")
    options = values(words.options, COMPARISON, f", and no such run\n{usage}")
    if not words.runs:
        raise RheoError(usage)
    if options["reach"] and options["columns"]:
        wanted = ",".join(f"{value:g}" for value in options["reach"])
        raise RheoError(f"reach={wanted}: of the table without columns=")
    return words.runs, options


# ------------------------------------------------------------------ data

SCRIPTED = "scripted"
SETS = ("random", "medium", "medium_replay", "medium_expert", "expert", SCRIPTED)


class Collecting(NamedTuple):
    """What `rheo collect` was asked."""

    names: list[str]  # of the behaviour; none: a graded set
    flagged: list[str]
    words: list[str]  # env.key=value, for the environment
    out: str
    env: str | None
    steps: int | None
    episodes: int | None
    noise: float
    sample: bool
    seed: int
    num_envs: int
    set: str | None
    actors: str | None
    keep: str  # of demonstrations: success or all
    past: int | None  # steps that they go on after their task is solved
    layout: str | None


def amount(text: str) -> float:
    """Reads a number that is not negative."""
    if number(text) < 0:
        raise ValueError("a number that is not negative is needed")
    return float(text)


COLLECTING = {
    **{"out": Option(None), "env": Option(None), "actors": Option(None)},
    **{"steps": Option(None, count), "episodes": Option(None, count)},
    **{"noise": Option(0.0, amount), "sample": Option(False, switch), "seed": Option(0, natural)},
    **{"num_envs": Option(20, count), "set": Option(None, one_of(*SETS))},
    **{"keep": Option("success", one_of("success", "all")), "past": Option(None, natural)},
    "layout": Option(None, one_of(*LAYOUTS)),
}
# what says nothing of scripted demonstrations, and what is said of nothing else
NOT_SCRIPTED, OF_SCRIPTED = ("actors", "steps", "sample", "num_envs"), ("keep", "past")


def collect(argv: Sequence[str]) -> "Collecting | branching.Branching":
    """`rheo collect`: behaviour, environment and amount. Raises RheoError naming the bad word."""
    if list(argv[:1]) == [branching.WORD]:
        return branching.branches(argv[1:])
    usage, words = USAGE["collect"], divide(argv, COLLECTING)
    inner = [word for word in words.options if word.startswith("env.")]
    own = [word for word in words.options if word not in inner]
    found = values(own, COLLECTING, f"\n{usage}")
    if found["out"] is None:
        raise RheoError(f"out=FILE has to be given\n{usage}")
    if found["steps"] is not None and found["episodes"] is not None:
        raise RheoError("steps= and episodes= contradict each other; give one of them")
    typed = {word.partition("=")[0] for word in own}
    scripted = found["set"] == SCRIPTED
    for key in NOT_SCRIPTED if scripted else OF_SCRIPTED:
        if key in typed:
            kind = "is not for" if scripted else "is for"
            raise RheoError(f"{key}= {kind} set={SCRIPTED}; leave it out")
    if found["set"] is not None:
        refuse_set(found)
    if len(words.runs) != (found["set"] is None):
        raise RheoError(usage)
    if scripted:
        found["episodes"] = found["episodes"] or 100
        inner = [*of_suite(found), *inner]
    elif found["episodes"] is None and found["steps"] is None:
        found["steps"] = 1_000_000 if found["set"] else 10_000
    out = expanded(found["out"])
    layout_of(out, found["layout"])
    if out.exists():
        raise RheoError(f"out={out}: exists; choose another name")
    return Collecting(words.runs, words.flagged, inner, **found)


def of_suite(found: dict[str, Any]) -> list[str]:
    """env=ID of a suite (Meta-World, OGBench) as the suite's file and the id of one task."""
    env_id, suite = found["env"], suite_of(found["env"])
    if files_of(env_id) != [suite]:
        return []
    found["env"] = suite
    return [f"env.id={env_id}"]


def refuse_set(found: Mapping[str, Any]) -> None:
    """Raises RheoError for a set that cannot be built."""
    graded = found["set"] != SCRIPTED
    if graded and found["episodes"] is not None:
        raise RheoError("set= is measured in steps; give steps= instead of episodes=")
    if found["env"] is None:
        raise RheoError(f"set= needs env=NAME, for example env={'hopper_v4' if graded else 'lift'}")
    if graded and found["set"] != "random" and found["actors"] is None:
        raise RheoError(
            f"set={found['set']} needs actors=FOLDER of .npz actors, or actors=RUN,RUN,... of "
            "runs of different quality (rheo train algo=sac env=NAME, stopped at other steps)"
        )


# ------------------------------------------------------------------ this machine


def doctor(argv: Sequence[str]) -> None:
    """`rheo doctor` takes no words. Raises RheoError."""
    folders, words = flags(argv)
    if folders or words:
        raise RheoError(USAGE["doctor"])
