"""What `rheo data` was asked: words read before torch is imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from rheo.envs.paths import LAYOUTS
from rheo.errors import RheoError, nearest

from .words import Option, count, divide, natural, number, one_of, switch, values

USAGE = {
    "data": """\
usage: rheo data info FILE...                what is in files, or minari:DATASET_ID
       rheo data check FILE|FOLDER...       what is wrong, a line each; 2 when something is
       rheo data convert IN OUT             to .npz, or .hdf5 in D4RL's or robomimic's layout
       rheo data filter IN OUT              the episodes that are wanted, in another file
       rheo data corrupt IN OUT             a share of the steps made worse, to test a repair on
       rheo data repair IN OUT              what does not go with the steps around it, replaced
       rheo data fetch NAME [--from FILE|URL] [--to DIR] [--yes]
options: --time-limit N   steps after which an episode is cut where its end is not marked
         --obs-keys A,B   observations of robomimic and Minari data sets
         --action-scale auto|unit|physical|extremes   actions in [-1, 1], or in bounds
         --filter KEY     the demonstrations of a filter key (mask/KEY) of robomimic files
         --big             reads what becomes 100 times as large in memory, beyond 1 GB
         --on-bad refuse|drop|clip|keep   what is done with errors (keep: convert alone)
         --layout npz|d4rl|robomimic      what is written
filter:  --ended          only what the task ended: success where nothing else ends it
         (--ended=false    only what it did not: where it ends by a fall)
         --least RETURN    only returns as high as this
         --top SHARE       of those, the share with the highest returns
         --smooth SHARE    of those, the share with the smoothest actions: the least mean square
                           of third differences
corrupt: --share SHARE     of the steps (0.3), drawn by --seed N (0)
         --parts A,B       of observations, actions, rewards: what is corrupted of such a step
                           (observations)
         --kind uniform|gaussian|missing   noise between -SCALE and SCALE, or of that deviation, in
                           deviations of all steps (rewards are replaced by 30 times the noise); or
                           0 in the place of what is lost
         --scale SCALE     of the noise (0.5)
repair:  --parts A,B       what may be flagged and replaced (observations,actions)
         --share SHARE     flags so many; left out: where flagged and others fall in two groups
         --half STEPS      that are looked at on either side of a step (5)
         --level SHARE     noise level from which the detector learns (0.3): more for worse noise
         --updates N       of each of the two networks (2000), drawn by --seed N (0)""",
}
PARTS = ("observations", "actions", "rewards")  # of a step, in the order of their columns


def listed(text: str) -> list[str]:
    """Reads names with commas between them."""
    return text.split(",")


def share(text: str) -> float:
    """Reads a share of a whole."""
    if not 0 < number(text) <= 1:
        raise ValueError("a share above 0, at most 1, is needed")
    return float(text)


def parts(text: str) -> list[str]:
    """Reads names of parts of a step, which come in their own order."""
    asked = listed(text)
    for name in asked:
        one_of(*PARTS)(name)
    return [name for name in PARTS if name in asked]


def amount(text: str) -> float:
    """Reads a number that is not negative."""
    if number(text) < 0:
        raise ValueError("a number is needed that is not negative")
    return float(text)


def inner(text: str) -> float:
    """Reads a share that is neither nothing nor all."""
    if not 0 < number(text) < 1:
        raise ValueError("a number between 0 and 1 is needed")
    return float(text)


READING = {
    **{"time_limit": Option(None, count), "obs_keys": Option(None, listed)},
    "action_scale": Option("auto", one_of("auto", "unit", "physical", "extremes")),
    **{"filter": Option(None), "big": Option(False, switch)},
}
COPYING = {
    **READING,
    "on_bad": Option("refuse", one_of("refuse", "drop", "clip")),
    "layout": Option(None, one_of(*LAYOUTS)),
}
DATA = {  # verb -> its options, and how many names it takes at most
    **{"info": (READING, None), "check": (READING, None)},
    "convert": (
        {**COPYING, "on_bad": Option("refuse", one_of("refuse", "drop", "clip", "keep"))},
        2,
    ),
    "filter": (
        {
            **COPYING,
            **{"ended": Option(None, switch), "least": Option(None, number)},
            **{"top": Option(None, share), "smooth": Option(None, share)},
        },
        2,
    ),
    "corrupt": (
        {
            **COPYING,
            **{"share": Option(0.3, share), "seed": Option(0, natural)},
            "parts": Option(["observations"], parts),
            "kind": Option("uniform", one_of("uniform", "gaussian", "missing")),
            "scale": Option(None, amount),
        },
        2,
    ),
    "repair": (
        {
            **COPYING,
            **{"parts": Option(["observations", "actions"], parts), "share": Option(None, inner)},
            **{"half": Option(5, count), "level": Option(0.3, inner)},
            **{"updates": Option(2000, count), "seed": Option(0, natural)},
        },
        2,
    ),
    "fetch": ({"from": Option(None), "to": Option(None), "yes": Option(False, switch)}, 1),
}


def data(argv: Sequence[str]) -> tuple[str, list[str], dict[str, Any]]:
    """`rheo data`: what is done, names of files or data sets, and options. Raises RheoError."""
    usage = USAGE["data"]
    if not argv:
        raise RheoError(usage)
    verb, *rest = argv
    if verb not in DATA:
        raise RheoError(f"unknown verb 'data {verb}'{nearest(verb, DATA)}\n{usage}")
    table, most = DATA[verb]
    words = divide(unflagged(rest, table), table)
    found = values(words.options, table, f"\n{usage}")
    if not words.runs or most is not None and len(words.runs) != most:
        raise RheoError(usage)
    return verb, words.runs, found


def unflagged(argv: Sequence[str], table: Mapping[str, Option]) -> list[str]:
    """Words with `--time-limit N` as time_limit=N, and `--yes` as yes=true."""
    found, rest = [], iter(argv)
    for word in rest:
        key, equals, text = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if not word.startswith("--") or key not in table:
            found.append(word)
        elif table[key].read is switch:
            found.append(f"{key}={text if equals else 'true'}")
        else:
            found.append(f"{key}={text if equals else next(rest, '')}")
    return found
