"""What `rheo data` was asked: words read before torch is imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from rheo.envs.paths import LAYOUTS
from rheo.errors import RheoError, nearest

from .words import Option, count, divide, number, one_of, switch, values

USAGE = {
    "data": """\
usage: rheo data info FILE...                what is in files, or minari:DATASET_ID
       rheo data check FILE|FOLDER...       what is wrong, a line each; 2 when something is
       rheo data convert IN OUT             to .npz, or .hdf5 in D4RL's or robomimic's layout
       rheo data filter IN OUT              the episodes that are wanted, in another file
       rheo data fetch NAME [--from FILE|URL] [--to DIR] [--yes]
options: --time-limit N   steps after which an episode is cut where its end is not marked
         --obs-keys A,B   observations of robomimic and Minari data sets
         --action-scale auto|unit|physical|extremes   actions in [-1, 1], or in bounds
         --filter KEY     the demonstrations of a filter key (mask/KEY) of robomimic files
         --big             reads what becomes 100 times as large in memory, beyond 1 GB
         --on-bad refuse|drop|clip|keep   what convert and filter do with errors (filter: not keep)
         --layout npz|d4rl|robomimic      what convert and filter write
filter:  --ended          only what the task ended: success where nothing else ends it
         (--ended=false    only what it did not: where it ends by a fall)
         --least RETURN    only returns as high as this
         --top SHARE       of those, the share with the highest returns
         --smooth SHARE    of those, the share with the smoothest actions: the least mean square
                           of third differences""",
}


def listed(text: str) -> list[str]:
    """Reads names with commas between them."""
    return text.split(",")


def share(text: str) -> float:
    """Reads a share of a whole."""
    if not 0 < number(text) <= 1:
        raise ValueError("a share above 0, at most 1, is needed")
    return float(text)


READING = {
    **{"time_limit": Option(None, count), "obs_keys": Option(None, listed)},
    "action_scale": Option("auto", one_of("auto", "unit", "physical", "extremes")),
    **{"filter": Option(None), "big": Option(False, switch)},
}
DATA = {  # verb -> its options, and how many names it takes at most
    **{"info": (READING, None), "check": (READING, None)},
    "convert": (
        {
            **READING,
            "on_bad": Option("refuse", one_of("refuse", "drop", "clip", "keep")),
            "layout": Option(None, one_of(*LAYOUTS)),
        },
        2,
    ),
    "filter": (
        {
            **READING,
            "on_bad": Option("refuse", one_of("refuse", "drop", "clip")),
            "layout": Option(None, one_of(*LAYOUTS)),
            **{"ended": Option(None, switch), "least": Option(None, number)},
            **{"top": Option(None, share), "smooth": Option(None, share)},
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
