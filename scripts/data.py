"""`rheo data`: look at recorded data, check them, convert and mend them, fetch public ones."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rheo.envs.data.catalogue import fits
from rheo.envs.data.faults import faults, saturated
from rheo.envs.data.read import AUTO, load, mended
from rheo.envs.data.recording import Reading, Recording, Refused, refuse
from rheo.envs.data.writing import write
from rheo.envs.memory import size_text
from rheo.envs.paths import SUFFIXES, expanded, layout_of
from rheo.envs.pixels import listed_images
from rheo.envs.scores import normalized_score
from rheo.errors import USER, RheoError, trace
from rheo.files import atomically, put_text, sha256

from .config.data import READING
from .corrupting import corrupt, scale_of
from .fetch import fetch
from .filtering import SIEVES, sifted
from .store.provenance import versions

Options = dict[str, Any]


def main(asked: tuple[str, list[str], Options]) -> int:
    """Runs one of the verbs; returns the exit status."""
    verb, names, options = asked
    try:
        match verb:
            case "info":
                return info(names, options)
            case "check":
                return check(names, options)
            case "convert":
                return convert(names[0], expanded(names[1]), options)
            case "filter":
                return filtered(names[0], expanded(names[1]), options)
            case "corrupt":
                return corrupted(names[0], expanded(names[1]), options)
            case "repair":
                return repaired(names[0], expanded(names[1]), options)
        return fetch(names[0], options["from"], options["to"], options["yes"])
    except Refused as refused:
        raise RheoError(worded(str(refused), options)) from refused


def worded(text: str, options: Options) -> str:
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


def opened(path: str, options: Options) -> Recording:
    """The recording behind a path, with whatever is wrong in it. Raises Refused."""
    return load(path, Reading(storage=AUTO, **{key: options[key] for key in READING}))


def info(paths: list[str], options: Options) -> int:
    """Prints what is in each file; 2 when one cannot be read."""
    code = 0
    for path in paths:
        try:
            print(worded("\n".join(described(opened(path, options))), options), flush=True)
        except Refused as refused:
            trace()
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
    if recording.cost is not None:
        lines.append(f"  cost         {quantiles(sums(recording, recording.cost))}")
    for key, table in recording.tables.items():
        lines.append(f"  {key:12} {table.shape[1]} dimensions, {bounds(table)}")
    lines[-1] += f", {100 * saturated(recording):.1f} % at a bound"
    if recording.images:
        lines.append(f"  images       {listed_images(recording.images)}")
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
    values = sums(recording, recording.reward)
    env_id, sizes = recording.about["env_id"], (recording.obs.shape[1], recording.action.shape[1])
    known = env_id if fits(env_id, *sizes) else None
    score = normalized_score(known or "", float(values.mean()))
    told = "" if score is None else f" (D4RL score {score:.1f} of 100)"
    return quantiles(values) + told


def sums(recording: Recording, values: np.ndarray) -> np.ndarray:
    """The sum over every episode [E] of the steps' numbers [S]."""
    return np.add.reduceat(values, recording.starts, dtype=np.float64)


def bounds(table: np.ndarray) -> str:
    """Smallest and largest number."""
    if not table.size:
        return "no numbers"
    low, high = np.fmin.reduce(table, axis=None), np.fmax.reduce(table, axis=None)  # pass over NaN
    return f"{low:.4g} to {high:.4g}"


def check(paths: list[str], options: Options) -> int:
    """Prints a line for each fault of each file; 2 when one is an error."""
    code = 0
    for path in files(paths):
        try:
            recording = opened(path, options)
            found, fine = faults(recording), size(recording)
        except Refused as refused:
            trace()
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


def tell_left_out(recording: Recording) -> None:
    """Says what of a file its copy does not have."""
    about = recording.about
    lost = [*about.get("left_out", ()), *about.get("unread", ())]
    if lost:
        print(f"{about['path']}: not in the copy: {', '.join(map(str, lost))}")


def convert(source: str, target: Path, options: Options) -> int:
    """Writes a file in another format. Refuses to write over one."""
    layout = refuse_taken(target, options)
    recording = sound(source, options)
    write(recording, target, layout=layout)
    tell_written(recording, target)
    return 0


def filtered(source: str, target: Path, options: Options) -> int:
    """Writes some of a file's episodes to another, and says which are not there and why.

    Raises RheoError where nothing chooses among them, and Refused where none is left.
    """
    asked = {key: options[key] for key in SIEVES if options[key] is not None}
    if not asked:
        flags = ", ".join(f"--{key}" for key in SIEVES)
        raise RheoError(f"nothing says which episodes are wanted: give one of {flags}")
    layout = refuse_taken(target, options)
    recording, fallen = sifted(sound(source, options), asked)
    write(recording, target, layout=layout)
    for text in fallen:
        print(f"{source}: {text}")
    tell_written(recording, target)
    return 0


def corrupted(source: str, target: Path, options: Options) -> int:
    """Writes a file with a share of its steps made worse, with which ones. Raises RheoError."""
    scale_of(options)
    layout = refuse_taken(target, options)
    recording = sound(source, options)
    mask, card = corrupt(recording, options)
    put(recording, source, target, layout, {"corruption": card}, {"mask": mask})
    cut = f", {card['cut']:,} numbers of actions cut to [-1, 1]" if card["cut"] else ""
    what = f"{', '.join(card['parts'])} of {card['corrupted']:,} of {card['steps']:,} steps"
    print(f"{source}: {what} are corrupted{cut}")
    tell_written(recording, target)
    return 0


def repaired(source: str, target: Path, options: Options) -> int:
    """Writes a file with other numbers where something does not belong, and says where.

    Raises Refused, and RheoError where a signal stops it or its networks break.
    """
    from .repairing import Repair, lines  # with torch
    from .stopping import stop_signals

    layout = refuse_taken(target, options)
    recording = sound(source, options)
    with stop_signals() as stop:
        stop.last_word = lambda: "nothing is written"
        repair = Repair(recording, options, stop)
        repair.go()
    arrays = {"mask": repair.mask, "scores": repair.scores}
    put(recording, source, target, layout, {"repair": repair.card}, arrays)
    for text in lines(repair.card, list(repair.parts)):
        print(f"{source}: {text}")
    tell_written(recording, target)
    return 0


def put(
    recording: Recording,
    source: str,
    target: Path,
    layout: str,
    told: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> None:
    """Writes a recording, arrays [S, P] about parts of its steps, and a card that tells of both."""
    write(recording, target, layout=layout)
    for name, array in arrays.items():
        atomically(beside(target, f"{name}.npy"), partial(save, array))
    origin = expanded(source)
    card = {
        **{"file": target.name, "sha256": sha256(target)},
        "source": origin.name if origin.exists() else source,
        "source_sha256": sha256(origin) if origin.is_file() else None,
        **told,
        **{name: beside(target, f"{name}.npy").name for name in arrays},
        "versions": versions(),
    }
    put_text(beside(target, "card.json"), json.dumps(card, indent=1) + "\n")


def beside(target: Path, ending: str) -> Path:
    """A file that goes with another: its name and an ending."""
    return target.with_name(f"{target.name}.{ending}")


def save(array: np.ndarray, part: Path) -> None:
    """Writes an array as an npy file, whatever the file is called."""
    with part.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def refuse_taken(target: Path, options: Options) -> str:
    """The layout in which a file will be written. Raises RheoError where there is one."""
    if target.exists():
        raise RheoError(f"{target} exists; remove it or choose another name")
    return layout_of(target, options["layout"])


def sound(source: str, options: Options) -> Recording:
    """A recording as it may be copied. Raises Refused."""
    recording = opened(source, options)
    if options["on_bad"] != "keep":
        return mended(recording, options["on_bad"])
    if "broken" in recording.about:
        raise Refused(source, recording.about["broken"])
    if "jumps" in recording.about:
        text = "next_observations that are not the following ones cannot be kept; --on-bad drop"
        raise refuse(source, text)
    return recording


def tell_written(recording: Recording, target: Path) -> None:
    """Says what a copy has, and what not."""
    tell_left_out(recording)
    steps, episodes = len(recording.action), len(recording.ends)
    print(f"{target}: {steps:,} steps in {episodes:,} episodes, {on_disk(str(target))[2:]}")
