"""`rheo data`: look at recorded data, check them, convert them, fetch public ones."""

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rheo.envs.data.catalogue import fits
from rheo.envs.data.faults import faults, saturated
from rheo.envs.data.read import AUTO, load, mended
from rheo.envs.data.recording import Reading, Recording, Refused, refuse
from rheo.envs.data.writing import SUFFIXES, write
from rheo.envs.memory import size_text
from rheo.envs.paths import expanded
from rheo.envs.scores import normalized_score
from rheo.errors import USER, RheoError

from .fetch import fetch

USAGE = """usage: rheo data info FILE...                what is in files, or minari:DATASET_ID
       rheo data check FILE|FOLDER...       what is wrong, a line each; 2 when something is
       rheo data convert IN OUT             to .hdf5 or .npz, without loss
       rheo data fetch NAME [--from FILE|URL] [--to DIR] [--yes]
options: --time-limit N   steps after which an episode is cut where its end is not marked
         --obs-keys A,B   observations of robomimic and Minari data sets
         --action-scale auto|unit|physical|extremes   actions in [-1, 1], or in bounds
         --filter KEY     the demonstrations of a filter key (mask/KEY) of robomimic files
         --on-bad refuse|drop|clip|keep   what convert does with errors"""


class Words(argparse.ArgumentParser):
    """Arguments whose mistakes are RheoError."""

    def error(self, message: str) -> NoReturn:
        raise RheoError(f"{message}\n{USAGE}")


def main(argv: list[str]) -> int:
    """Runs one of the four; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else USER
    options = parser().parse_args(argv)
    try:
        return options.run(options)
    except Refused as refused:
        raise RheoError(worded(str(refused), options)) from refused


def worded(text: str, options: argparse.Namespace) -> str:
    """A remedy that names a key of the configuration, as the option that the verb has for it.

    What the verb has no option for stays the key that training takes (data.on_bad=drop).
    """

    def option(match: re.Match[str]) -> str:
        key, value = match[1], match[2]
        if key not in options:
            return match[0]
        flag = f"--{key.replace('_', '-')}"
        return flag if value is None else f"{flag} {value[1:].strip('[]')}"

    return re.sub(r"\bdata\.(\w+)(=(?:\[[^]]*\]|[\w.-]*))?", option, text)


def parser() -> Words:
    """The arguments of the four."""
    words = Words("rheo data", add_help=False, allow_abbrev=False)
    verbs = words.add_subparsers(required=True, metavar="info|check|convert|fetch")
    reading = Words(add_help=False)
    reading.add_argument("--time-limit", type=int)
    scales = ("auto", "unit", "physical", "extremes")
    reading.add_argument("--action-scale", choices=scales, default="auto")
    reading.add_argument("--obs-keys", type=lambda text: text.split(","))
    reading.add_argument("--filter")
    for name, run in (("info", info), ("check", check)):
        verb = verbs.add_parser(name, parents=[reading], add_help=False)
        verb.add_argument("files", nargs="+", metavar="FILE")
        verb.set_defaults(run=run)
    verb = verbs.add_parser("convert", parents=[reading], add_help=False)
    verb.add_argument("source", metavar="IN")
    verb.add_argument("target", metavar="OUT")
    choices = ("refuse", "drop", "clip", "keep")
    verb.add_argument("--on-bad", choices=choices, default="refuse")
    verb.set_defaults(run=convert)
    verb = verbs.add_parser("fetch", add_help=False)
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--from", dest="source", metavar="FILE|URL")
    verb.add_argument("--to", metavar="DIR")
    verb.add_argument("--yes", action="store_true")
    verb.set_defaults(run=lambda o: fetch(o.name, o.source, o.to, o.yes))
    return words


def opened(path: str, options: argparse.Namespace) -> Recording:
    """The recording behind a path, with whatever is wrong in it. Raises Refused."""
    keys = ("action_scale", "obs_keys", "filter", "time_limit")
    how = {key: getattr(options, key) for key in keys}
    return load(path, Reading(storage=AUTO, **how))


def info(options: argparse.Namespace) -> int:
    """Prints what is in each file; 2 when one cannot be read."""
    code = 0
    for path in options.files:
        try:
            print(worded("\n".join(described(opened(path, options))), options), flush=True)
        except Refused as refused:
            code = USER
            for fault in refused.faults:
                print(f"{path}: {fault.level}: {worded(fault.line(), options)}", flush=True)
    return code


def described(recording: Recording) -> list[str]:
    """The report of one file."""
    about, lengths = recording.about, recording.lengths
    arrays = [value for value in recording if isinstance(value, np.ndarray)]
    count, ended = len(lengths), int(recording.terminated.sum())
    known = int((recording.successor >= 0).sum())
    lines = [
        about["path"],
        f"  format       {about['format']}{on_disk(about['path'])}, "
        f"{size_text(sum(array.nbytes for array in arrays))} in memory",
        f"  environment  {about['env_id'] or 'not told'}",
        f"  time step    {seconds(about.get('dt'))}",
        f"  steps        {len(recording.action):,} in {count:,} episodes",
        f"  ends         {ended:,} by the task, {count - ended:,} cut off; "
        f"the observation after {known:,} of them is known",
        f"  length       {quantiles(lengths)}",
        f"  return       {returns(recording)}",
    ]
    for key, table in recording.tables.items():
        lines.append(f"  {key:12} {table.shape[1]} dimensions, {bounds(table)}")
    lines[-1] += f", {100 * saturated(recording):.1f} % at a bound"
    return [*lines, *(f"  {fault.level:12} {fault.line()}" for fault in faults(recording))]


def on_disk(path: str) -> str:
    """Size of a file."""
    file = Path(path)
    return f", {size_text(file.stat().st_size)}" if file.is_file() else ""


def seconds(dt: Any) -> str:
    """A time step for people."""
    return f"{dt:g} s" if isinstance(dt, int | float) else "not told"


def quantiles(values: np.ndarray) -> str:
    """Five quantiles and the mean."""
    five = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    names = ("min", "25 %", "median", "75 %", "max")
    parts = [f"{name} {value:,.6g}" for name, value in zip(names, five, strict=True)]
    return f"{', '.join(parts)}; mean {values.mean():,.6g}"


def returns(recording: Recording) -> str:
    """Quantiles of the episodes' returns, and the mean's score where references are known."""
    if recording.reward is None:
        return "no rewards"
    values = np.add.reduceat(recording.reward, recording.starts, dtype=np.float64)
    env_id, sizes = recording.about["env_id"], (recording.obs.shape[1], recording.action.shape[1])
    known = env_id if fits(env_id, *sizes) else None
    score = normalized_score(known or "", float(values.mean()))
    told = "" if score is None else f" (D4RL score {score:.1f} of 100)"
    return quantiles(values) + told


def bounds(table: np.ndarray) -> str:
    """Smallest and largest number."""
    low, high = np.fmin.reduce(table, axis=None), np.fmax.reduce(table, axis=None)  # pass over NaN
    return f"{low:.4g} to {high:.4g}"


def check(options: argparse.Namespace) -> int:
    """Prints a line for each fault of each file; 2 when one is an error."""
    code = 0
    for path in files(options.files):
        try:
            recording = opened(path, options)
            found, fine = faults(recording), size(recording)
        except Refused as refused:
            found, fine = refused.faults, ""
        for fault in found:
            print(f"{path}: {fault.level}: {worded(fault.line(), options)}", flush=True)
        if any(fault.level == "error" for fault in found):
            code = USER
        else:
            print(f"{path}: ok: {fine}", flush=True)
    return code


def size(recording: Recording) -> str:
    """Steps and episodes, and what its observations are where they have names."""
    text = f"{len(recording.action):,} steps in {len(recording.ends):,} episodes"
    parts = recording.about.get("obs_keys")
    return f"{text}; {recording.about['format']}, observing {', '.join(parts)}" if parts else text


def files(paths: list[str]) -> list[str]:
    """Files as they are, folders as the data files below them, or as one data set without any."""
    found: list[str] = []
    for path in paths:
        folder = expanded(path)
        if not folder.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES)
        found.extend([str(file) for file in inside if file.is_file()] or [path])
    return found


def convert(options: argparse.Namespace) -> int:
    """Writes a file in another format. Refuses to write over one."""
    target = expanded(options.target)
    if target.exists():
        raise RheoError(f"{target} exists; remove it or choose another name")
    if target.suffix not in SUFFIXES:
        raise RheoError(f"{target}: the suffix must be one of {', '.join(SUFFIXES)}")
    recording = opened(options.source, options)
    if options.on_bad != "keep":
        recording = mended(recording, options.on_bad)
    elif "broken" in recording.about:
        raise Refused(options.source, recording.about["broken"])
    elif "jumps" in recording.about:
        text = "next_observations that are not the following ones cannot be kept; --on-bad drop"
        raise refuse(options.source, text)
    write(recording, target)
    steps, episodes = len(recording.action), len(recording.ends)
    print(f"{target}: {steps:,} steps in {episodes:,} episodes, {on_disk(str(target))[2:]}")
    return 0
