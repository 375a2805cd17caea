"""`rheo report FOLDER`: runs as pages: a table per environment, what made it, curves.

No number passes through a hand: every one is computed from the episodes in the run folders, and
each row is followed by its command, its versions and how it was evaluated.
"""

import csv
import io
import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheo.errors import RheoError
from rheo.files import put_text
from rheo.stats import improvement, iqm, of_means, of_runs, wilson

from .compare import Group, Result, evaluations, grouped, last_evaluation, method_of, picture, read
from .config.reporting import Reporting
from .config.verbs import SUCCESS

log = logging.getLogger("rheo")
DEPTH = 3  # folders below the one that is named in which runs are looked for
TOLD = ("rheo", "torch", "mujoco", "gymnasium", "numpy")  # versions that numbers depend on
PAGE, ROWS, CURVES = "report.md", "report.csv", "report.png"


class Panel(NamedTuple):
    """The runs in one environment, or on data without one."""

    env: str
    metric: str
    groups: list[Group]


def main(asked: Reporting) -> int:
    """Writes report.md, report.csv and report.png into the folder. Raises RheoError."""
    folder = Path(asked.folder)
    runs = sorted(found(folder))
    if not runs:
        raise RheoError(f"{folder}: no runs in it (no folder with a config.yaml)")
    results, left = [], []
    for run in runs:
        try:
            metric = asked.metric or metric_of(run, asked.changed)
            results.append((read(run, metric, asked.changed), metric))
        except RheoError as error:
            left.append(str(error).splitlines()[0])
    if not results:
        raise RheoError("\n".join([f"{folder}: no run can be reported:", *left]))
    panels = list(panelled(results))
    out = Path(asked.out) if asked.out is not None else folder
    out.mkdir(parents=True, exist_ok=True)
    text = page(folder, panels, left, asked.changed)
    put_text(out / PAGE, text)
    put_text(out / ROWS, sheet(panels))
    print(text.partition("\n## Commands")[0].rstrip())
    drawn = curves(panels, out / CURVES)
    print(f"\n{out / PAGE}, {out / ROWS}" + (f", {drawn}" if drawn else ""))
    return 0


def found(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders of runs in and below a folder."""
    if (folder / "config.yaml").is_file():
        yield folder
    elif depth and folder.is_dir():
        for inner in folder.iterdir():
            if not inner.name.startswith(".") and inner.is_dir():
                yield from found(inner, depth - 1)


def metric_of(run: Path, changed: str = "") -> str:
    """What an environment is judged by: a score with references, else success, else the return."""
    rows = json.loads(last_evaluation(run, changed).read_text())
    if rows.get("references"):
        return "score"
    told = next((name for name in SUCCESS if f"eval/{name}" in rows), None)
    return told or "return"


def panelled(results: Sequence[tuple[Result, str]]) -> Iterator[Panel]:
    """Runs by environment, its options and metric, the best method first."""
    places: dict[tuple[str, str], list[Result]] = {}
    for result, metric in results:
        options = (result.config.get("env") or {}).get("options") or {}
        words = "".join(f" {key}={value}" for key, value in sorted(options.items()))
        places.setdefault((f"{result.env}{words}", metric), []).append(result)
    for (env, metric), held in places.items():
        statistic = np.mean if metric in SUCCESS else iqm  # which of zeros and ones says nothing
        groups = sorted(grouped(held), key=lambda group: -float(statistic(pooled(group))))
        yield Panel(env, metric, groups)


def pooled(group: Group) -> NDArray:
    """The episodes of all seeds."""
    return np.concatenate([result.values for result in group.results])


# ---- the page ------------------------------------------------------------------------------------


def page(folder: Path, panels: Sequence[Panel], left: Sequence[str], changed: str) -> str:
    """All of it as Markdown."""
    parts = [f"# {folder.name}"]
    for panel in panels:
        parts += [f"## {panel.env}: {panel.metric}{' in %' * (panel.metric in SUCCESS)}"]
        parts += ["\n".join(table(panel)), notes(panel, changed)]
    commands = [line for panel in panels for group in panel.groups for line in made_by(group)]
    parts += ["## Commands", "```\n" + "\n".join(commands) + "\n```"]
    parts += ["## Versions", "\n".join(versions(panels))]
    if left:
        parts += ["## Left out", "\n".join(f"- {line}" for line in left)]
    return "\n\n".join(parts) + "\n"


def table(panel: Panel) -> list[str]:
    """A row a method."""
    best = means_of(panel.groups[0])
    rated = panel.metric in SUCCESS
    names = [
        "method",
        "seeds",
        "steps",
        *(("rate", "Wilson") if rated else ("IQM", "95 %", "mean")),
    ]
    names += ["over seeds", "per seed", "best is better", "minutes"]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row, group in enumerate(panel.groups):
        runs, means = [result.values for result in group.results], means_of(group)
        steps = np.mean([result.step for result in group.results])
        several = len(means) > 1
        cells = [method_of(group), str(len(runs)), f"{steps:,.0f}"]
        cells += rate(runs) if rated else middle(runs)
        cells += [between(of_means(means)) if several else "one seed"]
        cells.append(" / ".join(f"{mean:.1f}" for mean in means))
        rival = row > 0 and several and len(best) > 1
        cells.append(f"{100 * improvement(best, means):.0f} %" if rival else "")
        cells.append(f"{np.mean([result.wall for result in group.results]) / 60:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def rate(runs: list[NDArray]) -> list[str]:
    """Success in per cent with Wilson's interval."""
    values = np.concatenate(runs)
    low, high = wilson(round(values.sum() / 100), len(values))
    return [f"{values.mean():.1f}", between((100 * low, 100 * high))]


def middle(runs: list[NDArray]) -> list[str]:
    """IQM with its bootstrap interval, and the mean."""
    values = np.concatenate(runs)
    return [f"{iqm(values):.1f}", between(of_runs(runs, iqm)), f"{values.mean():.1f}"]


def between(ends: tuple[float, float]) -> str:
    """An interval."""
    return f"{ends[0]:.1f} to {ends[1]:.1f}"


def means_of(group: Group) -> NDArray:
    """The mean of every seed [S]."""
    return np.array([result.values.mean() for result in group.results])


def notes(panel: Panel, changed: str) -> str:
    """How the rows were evaluated, and what sets any of them apart."""
    results = [result for group in panel.groups for result in group.results]
    counts = sorted({len(result.values) for result in results})
    episodes = " to ".join(str(count) for count in {counts[0]: 0, counts[-1]: 0})
    kind = f"with {changed}" if changed else "deployed as the run is"
    text = f"{episodes} episodes of the last checkpoint a run, {kind}. "
    if panel.metric not in SUCCESS:
        text += "IQM: interquartile mean of all seeds' episodes, its interval a bootstrap over "
        text += "seeds and episodes. "
    text += "Over seeds: Student's t of the seeds' means. Best is better: the probability that a "
    text += "seed of the first row is above one of this row."
    usual = told_by(results[0].path)
    other = [each.path.name for each in results if told_by(each.path) != usual]
    if other:
        text += f" **Made with other versions than the first row: {', '.join(other)}.**"
    if len(counts) > 1:
        text += " **Rows have different numbers of episodes.**"
    return text


def start_of(run: Path) -> dict[str, Any]:
    """The first entry of a run's run.json; empty where there is none."""
    try:
        return json.loads((run / "run.json").read_text())["starts"][0]
    except (OSError, ValueError, KeyError, IndexError):
        return {}


def told_by(run: Path) -> tuple[str, ...]:
    """The versions that a run was made with."""
    known = start_of(run).get("versions", {})
    return tuple(f"{name} {known.get(name, 'unknown')}" for name in TOLD)


def made_by(group: Group) -> list[str]:
    """The command of every seed of a row; what several share is said once."""
    found = []
    for result in group.results:
        words = start_of(result.path).get("command")
        found.append(f"{result.path.name}: {shlex.join(words) if words else 'not recorded'}")
    return found


def versions(panels: Sequence[Panel]) -> list[str]:
    """Every set of versions, commits and machines, with how many runs it made."""
    counts: dict[str, int] = {}
    for panel in panels:
        for result in (each for group in panel.groups for each in group.results):
            start = start_of(result.path)
            words = [*told_by(result.path), f"commit {str(start.get('commit'))[:12]}"]
            words += [
                f"{start.get('machine', 'an unknown machine')}, {start.get('cpus', '?')} CPUs"
            ]
            text = ", ".join(words)
            counts[text] = counts.get(text, 0) + 1
    return [f"- {count} runs: {text}" for text, count in counts.items()]


# ---- beside the page -----------------------------------------------------------------------------


def sheet(panels: Sequence[Panel]) -> str:
    """A row a run, for whoever computes other things of it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["environment", "metric", "method", "run", "seed", "step", "episodes", "mean", "iqm"]
    writer.writerow([*names, "minutes", "ms_per_decision"])
    for panel in panels:
        for group in panel.groups:
            for one in group.results:
                row = [panel.env, panel.metric, method_of(group), one.path.name]
                row += [one.config.get("seed"), one.step, len(one.values)]
                row += [
                    f"{one.values.mean():.4f}",
                    f"{iqm(one.values):.4f}",
                    f"{one.wall / 60:.2f}",
                ]
                row += ["" if one.decision_ms is None else f"{one.decision_ms:.3f}"]
                writer.writerow(row)
    return out.getvalue()


def curves(panels: Sequence[Panel], file: Path) -> Path | None:
    """Curves of all runs with several evaluations; None where no run has them."""
    groups = []
    for panel in panels:
        for name, results in panel.groups:
            several = [one for one in results if len(evaluations(one.path)) > 1]
            if several and panel.metric == panels[0].metric:
                groups.append(Group(name, several))
    if not groups:
        return None
    picture(groups, panels[0].metric, file)
    return file
