"""What `rheo sweep` was asked: a run for every combination of values, checked before any starts.

Hydra's grammar says which words have several values (`seed=0,1,2`, `seed=range(0,5)`), and its
plugins launch the runs. What a combination means only `rheo train` knows, so it is composed here as
that does, and Hydra carries nothing but the words.
"""

import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException

from rheo.errors import RheoError

from ..store.where import locate, stored
from . import compose, programs
from .launchers import (
    HYDRAS,
    LAUNCHERS,
    OPTUNA,
    at_once,
    direction_of,
    key_of,
    launching,
    refuse_hydras,
    refuse_missing,
    settings,
)
from .top import AT_ANY_START, STEPPING, inside, walk
from .words import (
    Option,
    as_flags,
    count,
    flags,
    is_literal,
    is_there,
    items,
    literal,
    one_of,
    values,
)

log = logging.getLogger("rheo")
USAGE = {
    "sweep": """\
usage: rheo sweep name=NAME KEY=A,B,... [key=value ...] [launcher=basic] [jobs=N]
       a run for every combination of the values, each what `rheo train` makes of its words, in
       runs/NAME/KEY=A_KEY=B; the same command again goes on with what was cut, starts what is
       missing and leaves out what is done; the table of all is printed and in runs/NAME.csv
values:    seed=0,1,2  "seed=range(0,5)"  algo=sac,rfm  init=a,b  data=a.npz,b.npz
launchers: jobs= says how many run at once; hydra.launcher.KEY=VALUE sets what is their own
  basic            one after another in this process; needs no other package
  joblib           processes of this machine: pip install 'rheo-rl[sweep]'
  submitit_local   the same by submitit, jobs= at a time: pip install 'rheo-rl[slurm]'
  submitit_slurm   jobs of a SLURM cluster whose machines share this disk: the same package, and
                   hydra.launcher.partition=NAME hydra.launcher.timeout_min=N; a job at its time
                   limit saves, is requeued and goes on
  ray              Ray's workers: pip install 'rheo-rl[ray]' in a virtual environment of its own;
                   ++hydra.launcher.ray.remote.num_gpus=1 gives each job a GPU
sweeper=optuna     searches for the values with the largest return at a run's last evaluation:
                   "algo.critic_lr=tag(log,interval(1e-4,1e-2))" hydra.sweeper.n_trials=20;
                   pip install 'rheo-rl[optuna]'
exit status: 0 all done; 75 stopped, start it again; 1 some failed; 2 refused, none started"""
}
SWEEPING = {
    "launcher": Option("basic", one_of(*LAUNCHERS)),
    "sweeper": Option("basic", one_of("basic", "optuna")),
    "jobs": Option(None, count),
}
# what may differ between two calls of a sweep: lengths, periods, limits and where it runs
FREE = (
    *("name", "steps", "log_every", "eval_every", "save_every", "limits", "threads", "device"),
    *("signal", "save_minutes", "tracker"),
    *(f"env.{key}" for key in STEPPING),
)
MOST = 10_000  # runs
LONGEST = 200  # characters of a folder's name
ABSENT = object()


class Combination(NamedTuple):
    """One run of a sweep."""

    name: str  # of its folder below the sweep's
    words: list[str]  # what `rheo train` would be asked, flags too, without a name
    config: dict[str, Any]


class Sweep(NamedTuple):
    """What is to be run, and how."""

    name: str
    launcher: str
    jobs: int  # at once
    hydra: list[str]  # Hydra's own words
    fixed: list[str]  # words of every run, with the flags
    searched: list[str]  # words whose values Optuna chooses; empty: all combinations are run
    combinations: list[Combination]  # empty where values are searched
    runs: int  # how many there are
    direction: str  # of a search: maximize or minimize


def sweep(argv: Sequence[str]) -> Sweep:
    """`rheo sweep`: every run, checked, and how they are launched. Raises RheoError."""
    folders, words = flags(argv)
    own = [word for word in words if key_of(word) in SWEEPING]
    typed = [word for word in words if word.lstrip("+").startswith(HYDRAS)]
    name, rest = named([word for word in words if word not in own and word not in typed])
    found = values(own, SWEEPING, f"\n{USAGE['sweep']}")
    launcher, searching = found["launcher"], found["sweeper"] == "optuna"
    if launcher == "basic" and (found["jobs"] or 1) > 1:
        text = "launcher=basic runs one after another; add launcher=joblib, for example"
        raise RheoError(f"jobs={found['jobs']}: {text}")
    refuse_missing(f"launcher={launcher}", LAUNCHERS[launcher])
    if searching:
        refuse_missing("sweeper=optuna", OPTUNA)
    refuse_hydras(rest, typed, launcher, searching)
    lists = [alternatives(word, searching) for word in rest]
    several = [key_of(group[0]) for group in lists if len(group) > 1]
    refuse_keys(several, [key_of(group[0]) for group in lists])
    fixed = [*as_flags(folders), *programs.as_flags()]
    fixed += [*(group[0] for group in lists if len(group) == 1)]
    many = [group for group in lists if len(group) > 1]
    runs = math.prod(map(len, many))
    if not searching and runs > MOST:
        counts = ", ".join(f"{key_of(group[0])} {len(group)}" for group in many)
        more = "or more " if any(len(group) > MOST for group in many) else ""
        raise RheoError(f"{runs} {more}runs ({counts} values): at most {MOST} in one sweep")
    tried = ends(many) if searching else list(itertools.product(*many))
    checked = check(fixed, tried)
    jobs = found["jobs"] or at_once(launcher, 1 if searching else len(checked))
    hydras = [*launching(launcher, jobs, searching, typed), *typed]
    sweeper = settings(hydras, typed)["sweeper"]
    if not searching:
        return Sweep(name, launcher, jobs, hydras, fixed, [], checked, len(checked), "")
    refuse_blind(checked[0], sweeper)
    searched = [word for word in rest if key_of(word) in several]
    how = sweeper["n_trials"], direction_of(sweeper)
    return Sweep(name, launcher, jobs, hydras, fixed, searched, [], *how)


def of_runs(name: str, runs: Mapping[str, list[str]]) -> Sweep:
    """Runs of words of their own, by their folders' names, one after another. Raises RheoError."""
    with once():
        found = [Combination(own, words, compose.train(words)) for own, words in runs.items()]
    hydras = launching("basic", 1, False, [])
    return Sweep(name, "basic", 1, hydras, [], [], found, len(found), "")


# ------------------------------------------------------------------ words


def named(words: list[str]) -> tuple[str, list[str]]:
    """The sweep's name, and the other words. Raises RheoError without one."""
    names = [literal("name", word.partition("=")[2]) for word in words if key_of(word) == "name"]
    if not names or not names[-1]:
        raise RheoError(
            "name=NAME has to be given: the runs are in runs/NAME, where the same command goes on"
        )
    locate(names[-1])
    return names[-1], [word for word in words if key_of(word) != "name"]


def alternatives(word: str, searching: bool) -> list[str]:
    """The words that one with several values stands for, itself where it has one.

    searching: of a range of numbers its ends, between which Optuna chooses. Raises RheoError.
    """
    key, _, text = word.partition("=")
    if is_literal(key):
        names = [] if is_there(text) or text.startswith("[") else items(text)
        if searching and len(names) > 1:
            raise RheoError(f"{word}: sweeper=optuna searches no names; give {key}= one value")
        return [f"{key}={name}" for name in names] if len(names) > 1 else [word]
    try:
        one = OverridesParser.create().parse_override(word)
    except HydraException:
        return [word]  # what is wrong is said when it is composed
    value, texts = one.value(), []
    if not one.is_sweep_override():
        return [word]
    if isinstance(value, Glob):
        raise RheoError(f"{word}: name the values one by one")
    if isinstance(value, IntervalSweep) and not searching:
        raise RheoError(f"{word}: an interval is searched by sweeper=optuna; else name its values")
    if isinstance(value, IntervalSweep):
        texts = [str(value.start), str(value.end)]
    else:
        texts = list(itertools.islice(one.sweep_string_iterator(), MOST + 1))
    if not texts:
        raise RheoError(f"{word}: holds no value")
    texts = [texts[0], texts[-1]] if searching and one.is_range_sweep() else texts
    return [f"{one.get_key_element()}={text}" for text in texts]


def ends(many: list[list[str]]) -> list[tuple[str, ...]]:
    """Combinations in which every word of a search is met once, the others at their first."""
    first = tuple(group[0] for group in many)
    others = [(place, word) for place, group in enumerate(many) for word in group[1:]]
    return [first, *((*first[:place], word, *first[place + 1 :]) for place, word in others)]


def refuse_keys(several: list[str], keys: list[str]) -> None:
    """Raises RheoError where nothing has several values, or one key has two words of them."""
    if not several:
        raise RheoError(
            "no word has several values (seed=0,1,2, for example); `rheo train` starts one run"
        )
    for key in several:
        if keys.count(key) > 1:
            raise RheoError(f"{key}: is given twice; leave one of the words out")


def label(words: Sequence[str]) -> str:
    """The folder of a combination by its own words: KEY=VALUE_KEY=VALUE, the seed at the end.

    Their order does not matter, so that a command that was typed anew finds its runs.
    """
    pairs = [(key_of(word), word.partition("=")[2].strip("[]{}'\" ")) for word in words]
    ordered = sorted(pairs, key=lambda pair: (pair[0] == "seed", pair))
    return re.sub(r"[^\w.=+-]+", "-", "_".join(f"{key}={text}" for key, text in ordered))


# ------------------------------------------------------------------ checks


def check(fixed: list[str], tried: Sequence[Sequence[str]]) -> list[Combination]:
    """All combinations composed as `rheo train` does. Raises RheoError with all that is wrong."""
    found: list[Combination] = []
    faults: dict[str, list[str]] = {}
    with once():
        for own in tried:
            name, words = label(own), [*fixed, *own]
            try:
                found.append(Combination(name, words, compose.train(words)))
            except RheoError as error:
                faults.setdefault(str(error), []).append(name)
    if faults:
        raise RheoError(refusal(faults, len(tried)))
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise RheoError(f"{name}: two combinations would be in this folder; name other values")
        if len(name.encode()) > LONGEST:
            raise RheoError(f"{name}: too long for a folder; give fewer keys several values")
    return found


def refusal(faults: dict[str, list[str]], runs: int) -> str:
    """What is wrong with which of the runs; a mistake that all of them have names none."""
    lines = []
    for message, names in faults.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        who = "" if len(names) == runs else f"{', '.join(names[:3])}{more}: "
        lines.append(who + message)
    return "\n".join(lines if len(lines) == 1 else ["no run was started", *lines])


@contextmanager
def once() -> Iterator[None]:
    """Inside, what the log says is said once, however many combinations it is true of."""
    said: set[str] = set()

    def new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        first = text not in said
        said.add(text)
        return first

    log.addFilter(new)
    try:
        yield
    finally:
        log.removeFilter(new)


def refuse_blind(one: Combination, sweeper: Any) -> None:
    """Raises RheoError for a search that nothing would lead."""
    if inside(one.config, "env.id") is None:
        raise RheoError("sweeper=optuna: needs returns; the runs have no environment (env=NAME)")
    direction = direction_of(sweeper)
    if direction not in ("maximize", "minimize"):
        raise RheoError(f"hydra.sweeper.direction={direction}: must be maximize or minimize")


def refuse_other(config: dict[str, Any], folder: Path) -> None:
    """Raises RheoError unless a run was made of the same words, but for lengths and places."""
    mine, theirs = dict(walk(config)), dict(walk(stored(folder)))
    for place in [*mine, *(place for place in theirs if place not in mine)]:
        if place in FREE or place.partition(".")[0] in (*AT_ANY_START, "programs"):
            continue
        here, there = mine.get(place, ABSENT), theirs.get(place, ABSENT)
        if here != there:
            old, new = ("not there" if one is ABSENT else one for one in (there, here))
            raise RheoError(
                f"{folder}: was made by other words, {place} is {old} there and {new} here; choose "
                "another name="
            )
