"""`rheo report FOLDER`: runs as pages: a table per environment, what made it, curves.

No number passes through a hand: every one is computed from the episodes in the run folders, and
each row is followed by its command, its versions and how it was evaluated.
"""

import json
import logging
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheo.errors import RheoError
from rheo.files import put_text
from rheo.stats import improvement, iqm, of_mean, of_means, of_runs, wilson

from .compare import Group, Result, evaluations, grouped, last_evaluation, method_of, picture, read
from .config.reporting import Paging, Reporting
from .config.verbs import SUCCESS
from .config.words import stem_of
from .pages import main as page_all
from .store.evaluations import read_evaluation
from .store.provenance import read_starts
from .store.where import is_run
from .summaries import Line, text_of

log = logging.getLogger("rheo")
DEPTH = 3  # folders below the one that is named in which runs are looked for
TOLD = ("rheo", "torch", "mujoco", "gymnasium", "numpy")  # versions that numbers depend on
PAGE, ROWS, CURVES = "report.md", "report.csv", "report.png"


class Panel(NamedTuple):
    """The runs in one environment, or on data without one."""

    env: str
    metric: str
    groups: list[Group]


def main(asked: Reporting | Paging) -> int:
    """Writes report.md, report.csv and report.png into the folder. Raises RheoError."""
    if isinstance(asked, Paging):
        return page_all(asked.summaries, asked.out)
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
    put_text(out / ROWS, sheet(folder, panels, asked.changed))
    print(text.partition("\n## Commands")[0].rstrip())
    drawn = curves(panels, out / CURVES)
    print(f"\n{out / PAGE}, {out / ROWS}" + (f", {drawn}" if drawn else ""))
    return 0


def found(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders of runs in and below a folder."""
    if is_run(folder):
        yield folder
    elif depth and folder.is_dir():
        for inner in folder.iterdir():
            if not inner.name.startswith(".") and inner.is_dir():
                yield from found(inner, depth - 1)


def metric_of(run: Path, changed: str = "") -> str:
    """What an environment is judged by: a score with references, else success, else the return."""
    rows = read_evaluation(last_evaluation(run, changed))
    if rows.get("references"):
        return "score"
    told = next((name for name in SUCCESS if f"eval/{name}" in rows), None)
    return told or "return"


def panelled(results: Sequence[tuple[Result, str]]) -> Iterator[Panel]:
    """Runs by environment, its options and metric, the best method first."""
    places: dict[tuple[str, str, str], list[Result]] = {}
    for result, metric in results:
        options = (result.config.get("env") or {}).get("options") or {}
        plain = {key: "..." if isinstance(value, dict) else value for key, value in options.items()}
        words = "".join(f" {key}={value}" for key, value in sorted(plain.items()))
        whole = json.dumps(options, sort_keys=True, default=str)
        places.setdefault((f"{result.env}{words}", metric, whole), []).append(result)
    for (env, metric, _), held in places.items():
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
    return next(iter(read_starts(run)), {})


def told_by(run: Path) -> tuple[str, ...]:
    """The versions that a run was made with."""
    known = start_of(run).get("versions") or {}
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


def sheet(folder: Path, panels: Sequence[Panel], changed: str) -> str:
    """A line a run, and one for all runs of a row: what `rheo report summaries=` makes pages of."""
    lines: list[Line] = []
    for panel in panels:
        for group in panel.groups:
            method = called(panel, group)
            task = short(panel.env) if panel.metric != "score" else stem_of(data_of(group))
            row = f"{folder.resolve().name}/{method}/{task}"
            runs = [line_of(row, method, panel, one, changed) for one in group.results]
            lines += [all_of(group, runs), *runs] if len(runs) > 1 else runs
    return text_of(lines)


def short(env: str) -> str:
    """Hopper-v5 as hopper, metaworld/push-v3 with its options as push."""
    return re.sub(r"-v\d+$", "", env.partition(" ")[0].rpartition("/")[2]).lower()


def data_of(group: Group) -> str | list[str] | None:
    """The data that a group was trained on."""
    return group.results[0].config["data"]


def called(panel: Panel, group: Group) -> str:
    """A method by what was typed for it; by its folder's name where two would be called alike."""
    names = [typed(one) for one in panel.groups]
    own = typed(group)
    return own if own is not None and names.count(own) == 1 else method_of(group)


def typed(group: Group) -> str | None:
    """The recipe or algorithm of a group's command; None where it tells neither."""
    words = start_of(group.results[0].path).get("command") or []
    given = dict(word.split("=", 1) for word in words if "=" in word)
    return given.get("recipe", given.get("algo"))


def line_of(row: str, method: str, panel: Panel, one: Result, changed: str) -> Line:
    """What a run's folder tells of it."""
    start, rows = start_of(one.path), read_evaluation(last_evaluation(one.path, changed))
    other = list(rows.get("changed") or [])
    how = [f"episodes={len(one.values)}", *other] if rows.get("label") else []
    source, rated = one.config.get("source") or {}, panel.metric in SUCCESS
    on_line = "path" not in source  # one that reads a file itself counts updates and no frames
    ends = of_mean(one.values)
    if rated:
        ends = wilson(round(one.values.sum() / 100), len(one.values))
        ends = 100 * ends[0], 100 * ends[1]
    return Line(
        row=row,
        environment=panel.env,
        metric=panel.metric,
        method=method,
        run=one.path.name,
        seed=str(one.config.get("seed")),
        frames=one.step if on_line else math.nan,
        updates=math.nan if on_line else one.step,
        deployment=" ".join(word for word in other if not word.startswith("seed=")),
        episodes=len(one.values),
        mean=round(float(one.values.mean()), 4),
        **dict(zip(("low", "high"), (round(end, 4) for end in ends), strict=True)),
        iqm=math.nan if rated else round(float(iqm(one.values)), 4),
        base=math.nan if one.before is None else round(one.before, 4),
        minutes=round(one.wall / 60, 2),
        ms_per_decision=math.nan if one.decision_ms is None else round(one.decision_ms, 3),
        command=shlex.join(start.get("command") or []),
        evaluation=shlex.join(how),
        versions=", ".join(told_by(one.path)) if start else "",
        date=str(start.get("started", ""))[:10],
    )


def all_of(group: Group, lines: Sequence[Line]) -> Line:
    """The line of all seeds of a row: statistics of their episodes together."""
    runs = [result.values for result in group.results]
    first, values = lines[0], np.concatenate(runs)
    low, high = of_runs(runs, np.mean)
    found = first._replace(run="", seed="", seeds=len(runs), command="", date="", note="")
    found = found._replace(mean=round(float(values.mean()), 4), low=round(low, 4))
    found = found._replace(high=round(high, 4), base=math.nan, minutes=math.nan)
    found = found._replace(ms_per_decision=math.nan, versions="")
    if first.metric in SUCCESS:
        return found
    low, high = of_runs(runs, iqm)
    return found._replace(iqm=round(float(iqm(values)), 4), iqm_low=round(low, 4),
                          iqm_high=round(high, 4))  # fmt: skip


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
