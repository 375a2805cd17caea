"""`rheo compare`: runs that differ in nothing but their seed as one row, with intervals."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheo.envs.paths import absolute, expanded
from rheo.errors import RheoError, command
from rheo.files import Unwritten, put_text
from rheo.stats import iqm, of_runs

from .config.top import STEPPING
from .config.verbs import SUCCESS
from .config.words import stem_of
from .plot import Curve, plot_curves
from .store.evaluations import read_evaluation
from .store.journal import Journal
from .store.where import existing, run_path, stored

METRICS = {"return": "ret", **{name: name for name in SUCCESS}}
OWN = (
    *("seed", "name", "threads", "device", "log_every", "eval_every", "save_every", "episodes"),
    *("save_minutes", "tracker"),
)
PLACES = {"data": absolute, "path": absolute, "init": run_path}  # keys of what lies elsewhere


class Result(NamedTuple):
    """A run's last checkpoint, evaluated."""

    path: Path
    config: dict[str, Any]
    env: str
    step: int
    values: NDArray  # [E] of the metric, an episode each
    wall: float  # seconds of training
    before: float | None  # mean of the metric before the first update, where it began with a base
    decision_ms: float | None  # of one deployed decision, where the evaluation timed it


class Group(NamedTuple):
    """Runs that differ in their seed only."""

    name: str
    results: list[Result]


def main(asked: tuple[list[str], dict[str, Any]]) -> int:
    """Prints the table of the runs that are named."""
    names, options = asked
    metric, minutes, by_name = options["metric"], options["minutes"], options["group"] == "name"
    found = [read(existing(name), metric, options["with"], minutes) for name in names]
    groups = grouped(found, by_name, minutes is None)
    if options["columns"]:
        text = pivot(groups, options["columns"], by_name)
    else:
        wanted = options["reach"] or []
        text = table(groups, [(value, reached(groups, metric, value)) for value in wanted])
    print(text)
    if options["out"] is not None:
        put_text(expanded(options["out"]), text + "\n")
    if options["curves"] is not None:
        picture(groups, metric, expanded(options["curves"]))
    return 0


def read(
    folder: Path, metric: str | None, changed: str = "", minutes: float | None = None
) -> Result:
    """The last evaluation of a run, or the last within so many minutes of its training.

    Raises RheoError when there is none, or not of that metric.
    """
    last, wall = None, wall_of(folder)
    if minutes is not None:
        rows = [row for row in evaluations(folder) if wall_in(row) <= 60 * minutes]
        if not rows:
            raise RheoError(f"{folder}: no evaluation within its first {minutes:g} minutes")
        last, wall = rows[-1]["step"], wall_in(rows[-1])
    file = last_evaluation(folder, changed, last)
    stored_rows = read_evaluation(file)
    values = values_of(file, stored_rows, metric)
    env, config = stored_rows.get("env") or "?", stored(folder)
    before = None
    if config.get("init") is not None:
        first = last_evaluation(folder, step=0)
        before = float(values_of(first, read_evaluation(first), metric).mean())
    step, ms = stored_rows["step"], stored_rows.get("decision_ms")
    return Result(folder, config, env, step, values, wall, before, ms)


def values_of(file: Path, rows: dict[str, Any], metric: str | None) -> NDArray:
    """The metric of every episode [E] of an evaluation's file, success in per cent. Raises
    RheoError without one.
    """
    references = rows.get("references")
    metric = metric or ("score" if references else "return")
    if metric == "score" and not references:
        raise RheoError(
            f"{file}: no score is defined there; use metric=return, or evaluate the run with "
            "ref_min= and ref_max="
        )
    values = [row.get(METRICS.get(metric, "ret")) for row in rows["episodes"]]
    if None in values:
        raise RheoError(f"{file}: its episodes have no {metric}; use metric=return")
    found = np.asarray(values, float) * (100 if metric in SUCCESS else 1)
    if metric == "score" and references:
        low, high = references["low"], references["high"]
        found = 100 * (found - low) / (high - low)
    return found


def last_evaluation(folder: Path, changed: str = "", step: int | None = None) -> Path:
    """The file of a step (None: the last) with the most episodes, as the run deploys its policy
    or with a changed value. Raises RheoError when there is none.
    """
    files = {}
    for file in (folder / "eval").glob("*.json"):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:-(.*))?)?", file.name.removesuffix(".json"))
        if match and (match[3] or "") == changed and step in (None, int(match[1])):
            files[int(match[1]), int(match[2] or 0)] = file
    if not files:
        more = [f"policy.{changed}"] if changed else []
        how = command("eval", folder, "episodes=50", *more)
        raise RheoError(f"{folder}: never evaluated; run: {how}")
    return files[max(files)]


def journal_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return Journal(folder / "metrics.jsonl").rows()


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's evaluations on its way."""
    return [row for row in journal_of(folder) if row.get("eval/return") is not None]


def wall_in(row: Mapping[str, Any]) -> float:
    """Seconds of training at a row; NaN where it does not tell."""
    found = row.get("time/wall")
    return math.nan if found is None else found


def wall_of(folder: Path) -> float:
    """Seconds of training, NaN when the run has not logged any."""
    rows = reversed(journal_of(folder))
    return next((wall_in(row) for row in rows if "time/wall" in row), math.nan)


def curve_of(folder: Path, metric: str | None) -> Curve:
    """The evaluations on the way of a run, which its journal dates. Raises RheoError."""
    rows = evaluations(folder)
    if len(rows) < 2:
        raise RheoError(f"{folder}: a curve needs two evaluations; set eval_every=")
    files = [folder / "eval" / f"{row['step']:012d}.json" for row in rows]
    values = [values_of(file, read_evaluation(file), metric) for file in files]
    frames, seconds = [row["step"] for row in rows], [wall_in(row) for row in rows]
    return Curve(np.array(frames), np.array(seconds) / 60, values)


def reached(groups: list[Group], metric: str | None, value: float) -> list[str]:
    """Frames of each group's seeds up to the first evaluation of at least `value`, as text.

    One before any frame does not count: what a run began with is its base's luck, not its growth.
    """
    texts = []
    for group in groups:
        seeds = []
        for curve in (curve_of(result.path, metric) for result in group.results):
            points = zip(curve.frames, curve.values, strict=True)
            good = [frames for frames, each in points if frames > 0 and each.mean() >= value]
            seeds.append(f"{good[0]:,}" if good else "never")
        texts.append(" / ".join(seeds))
    return texts


def picture(groups: list[Group], metric: str | None, file: Path) -> None:
    """Curves of every group, an environment a panel. Raises RheoError."""
    panels: dict[str, dict[str, list[Curve]]] = {}
    for group in groups:
        env = group.results[0].env
        curves = [curve_of(result.path, metric) for result in group.results]
        panels.setdefault(env, {})[method_of(group)] = curves
    try:
        plot_curves(panels, metric or "return or score", file)
    except Unwritten:
        raise
    except ValueError as error:  # an ending that is no picture's
        raise RheoError(f"curves={file}: {error}") from error


def method_of(group: Group) -> str:
    """The group's name without its environment: reinflow-hopper on Hopper-v5 is reinflow."""
    env = group.results[0].env.lower()
    words = [word for word in group.name.split("-") if not env.startswith(word.lower())]
    return "-".join(words) or group.name


def grouped(results: list[Result], by_name: bool = False, by_step: bool = True) -> list[Group]:
    """Runs of the same configuration but for seed and periods, in the order they were named."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        same = placed({key: value for key, value in result.config.items() if key not in OWN})
        same["env"] = {k: v for k, v in (same.get("env") or {}).items() if k not in STEPPING}
        which = name_of([result]) if by_name else json.dumps(same, sort_keys=True)
        # a rollout ends past the steps that were asked for, by how much the episodes decide
        step = min(result.step, int(result.config["steps"])) if by_step else 0
        groups.setdefault(f"{step} {result.env} {which}", []).append(result)
    return [Group(name_of(rows), rows) for rows in groups.values()]


def placed(node: dict[str, Any]) -> dict[str, Any]:
    """A configuration with absolute paths, which older runs stored as they were typed."""
    found = {}
    for key, value in node.items():
        if isinstance(value, dict):
            found[key] = placed(value)
        elif key in PLACES and isinstance(value, str):
            found[key] = PLACES[key](value)
        else:
            found[key] = value
    return found


def name_of(results: list[Result]) -> str:
    """The runs' common name: the folder's without its seed; the sweep's where that is all of it."""
    path = results[0].path
    return re.sub(r"(-s|(^|_)seed=)\d+$", "", path.name) or path.absolute().parent.name


def cell(results: list[Result], statistic: Any) -> str:
    """A statistic of all episodes with its interval."""
    runs = [result.values for result in results]
    low, high = of_runs(runs, statistic)
    return f"{statistic(np.concatenate(runs)):.1f} [{low:.1f}, {high:.1f}]"


def pivot(groups: list[Group], by: str, by_name: bool) -> str:
    """A Markdown table: a method a row, a data set or environment a column. Raises RheoError when
    two groups fall into one cell.
    """
    cells: dict[str, dict[str, Group]] = {}
    for group in groups:
        first = group.results[0]
        method = str(first.config["algo"]["_target_"]).rpartition(".")[2]
        method = method_of(group) if by_name else method
        place = first.env if by == "env" else stem_of(first.config["data"])
        row = cells.setdefault(method, {})
        if place in row:
            raise RheoError(
                f"{group.name} and {row[place].name} differ in their settings and are both "
                f"{method} on {place}; compare them without columns="
            )
        row[place] = group
    places = list(dict.fromkeys(place for row in cells.values() for place in row))
    lines = ["| | " + " | ".join([*places, "minutes"]) + " |", "|---" * (len(places) + 2) + "|"]
    for method, row in cells.items():
        values = []
        for place in places:
            text = cell(row[place].results, iqm) if place in row else ""
            short = place in row and len(row[place].results) < most_seeds(groups)
            values.append(f"{text} ({len(row[place].results)})" if short else text)
        walls = [result.wall for group in row.values() for result in group.results]
        lines.append("| " + " | ".join([method, *values, f"{np.mean(walls) / 60:.1f}"]) + " |")
    seeds = f"IQM of {most_seeds(groups)} seeds (fewer: in brackets), 95 % intervals"
    return "\n".join([*lines, "", seeds])


def most_seeds(groups: list[Group]) -> int:
    """The largest number of seeds of a group."""
    return max(len(group.results) for group in groups)


def table(groups: list[Group], frames: Sequence[tuple[float, list[str]]] = ()) -> str:
    """A Markdown table, a row per group; runs that began with a base show how far they came.

    frames: values, and for each a text per group of the frames until it was reached.
    """
    names = ["runs", "environment", "steps", "seeds", "mean", "IQM", "per seed", "minutes"]
    grown = any(result.before is not None for group in groups for result in group.results)
    names += ["base", "growth"] * grown + [f"frames to {value:g}" for value, _ in frames]
    timed = all(decision(group.results) for group in groups)
    names += ["ms per decision"] * timed
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row, (name, results) in enumerate(groups):
        runs = [result.values for result in results]
        steps = np.mean([result.step for result in results])
        cells = [name, results[0].env, f"{steps:,.0f}", str(len(results))]
        cells += [cell(results, statistic) for statistic in (np.mean, iqm)]
        cells.append(" / ".join(f"{run.mean():.1f}" for run in runs))
        cells.append(f"{np.mean([result.wall for result in results]) / 60:.1f}")
        cells += growth(results) * grown + [texts[row] for _, texts in frames]
        cells += [decision(results)] * timed
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def decision(results: list[Result]) -> str:
    """Mean milliseconds of a decision; empty unless every evaluation timed it."""
    times = [result.decision_ms for result in results if result.decision_ms is not None]
    return f"{np.mean(times):.2f}" if len(times) == len(results) else ""


def growth(results: list[Result]) -> list[str]:
    """Mean before the first update, and the net growth of the mean since, in per cent."""
    bases = [result.before for result in results if result.before is not None]
    if len(bases) < len(results):
        return ["", ""]
    base, now = np.mean(bases), np.mean([result.values.mean() for result in results])
    return [f"{base:.1f}", f"{100 * (now - base) / abs(base):+.0f} %" if base else ""]
