"""Pages of summaries: every number of docs/bench is one of docs/bench/data.

data/NAME.yaml   title, text and sections of a page, without figures; one with `rows: SUITE` has a
                 table for each of its tasks, one with `table: FILE.csv` that file as it stands
data/NAME.csv    the lines of its rows (summaries.py)
data/made.csv    bases and data sets that rows begin with
"""

import csv
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rheo.errors import RheoError
from rheo.files import put_text

from .config.yamls import text_of
from .summaries import (
    INTERVALS,
    RATES,
    Figures,
    Line,
    Made,
    Row,
    commands,
    figures,
    lines_of,
    rows_of,
)

MADE, INDEX = "made.csv", "index.md"
SECTION = {"title", "text", "rows", "table", "note"}
PAGE = {"title", "text", "sections", "picture", "order"}


class Page(NamedTuple):
    """A page as its .yaml describes it, with the rows that may be in it."""

    name: str
    told: dict[str, Any]
    rows: dict[str, Row]


def main(summaries: str, out: str) -> int:
    """Writes a page for every .yaml of a folder, and an index. Raises RheoError."""
    folder, target = Path(summaries), Path(out)
    pages = read(folder)
    texts = {f"{page.name}.md": written(page, folder) for page in pages} | {INDEX: index(pages)}
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        put_text(target / name, text)
    print(f"{target}: {', '.join(texts)}")
    return 0


def read(folder: Path) -> list[Page]:
    """The pages of a folder, in their order. Raises RheoError naming the file."""
    found = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            told = yaml.safe_load(text_of(file))
        except (OSError, yaml.YAMLError) as error:
            raise RheoError(f"{file}: not readable: {' '.join(str(error).split())}") from error
        refuse_page(file, told)
        tabled = any("rows" in section for section in told["sections"])
        rows = rows_of(lines_of(file.with_suffix(".csv"), Line)) if tabled else {}
        found.append(Page(file.stem, told, rows))
    if not found:
        raise RheoError(f"{folder}: no page in it (no .yaml that describes one)")
    return sorted(found, key=lambda page: (page.told.get("order", 99), page.name))


def refuse_page(file: Path, told: Any) -> None:
    """Raises RheoError for a description that is none."""
    if not isinstance(told, dict) or not {"title", "sections"} <= set(told):
        raise RheoError(f"{file}: a page needs title: and sections:")
    nodes = [(told, PAGE), *((section, SECTION) for section in told["sections"])]
    for node, known in nodes:
        strange = sorted(set(node) - known)
        if strange:
            raise RheoError(
                f"{file}: unknown key {strange[0]!r}; there are {', '.join(sorted(known))}"
            )


def made(folder: Path) -> dict[str, Made]:
    """Bases and data sets that rows begin with, by the names that commands call them."""
    file = folder / MADE
    return {one.name: one for one in lines_of(file, Made)} if file.exists() else {}


# ---- a page --------------------------------------------------------------------------------------


def written(page: Page, folder: Path) -> str:
    """A page as Markdown."""
    told, used = page.told, []
    parts = [f"# {told['title']}", str(told.get("text", "")).strip()]
    if told.get("picture"):
        parts.append(f"![curves]({told['picture']})")
    for section in told["sections"]:
        parts += [f"## {section['title']}", str(section.get("text", "")).strip()]
        if "table" in section:
            parts.append("\n".join(plain(folder / section["table"])))
        if "rows" in section:
            rows = chosen(page, section["rows"])
            used += rows
            parts += tables(rows)
        parts.append(str(section.get("note", "")).strip())
    parts += footer(page, used)
    return "\n\n".join(part for part in parts if part) + "\n"


def chosen(page: Page, suite: str) -> list[Row]:
    """The rows of a suite. Raises RheoError where there is none."""
    found = [row for name, row in page.rows.items() if name.partition("/")[0] == suite]
    if not found:
        raise RheoError(f"{page.name}.yaml: rows: {suite}: no such rows in {page.name}.csv")
    return found


def tables(rows: Sequence[Row]) -> list[str]:
    """All tasks side by side where there are several, then one after another."""
    tasks: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tasks.setdefault((row.first.environment, row.first.metric), []).append(row)
    parts = ["\n".join(matrix(tasks))] if len(tasks) > 1 else []
    for (environment, metric), held in tasks.items():
        parts += [f"### {environment}: {metric.replace('_', ' ')}{' in %' * (metric in RATES)}"]
        parts += [
            "\n".join(table(held)),
            protocol(held),
            "```\n" + "\n".join(typed(held)) + "\n```",
        ]
    return parts


def matrix(tasks: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
    """One number a cell: a method a row, a task a column."""
    methods = dict.fromkeys(row.first.method for held in tasks.values() for row in held)
    names = [environment.partition(" ")[0] for environment, _ in tasks]
    if len(set(names)) < len(names):
        names = [environment for environment, _ in tasks]
    lines = head(["", *names])
    for method in methods:
        cells = [method]
        for held in tasks.values():
            own = [row for row in held if row.first.method == method]
            cells.append(number(figures(own[0]).value) if own else "")
        lines.append(line(cells))
    return lines


COLUMNS = {  # of a table: heading -> field of Figures
    **{"low": "low", "high": "high", "IQM": "iqm", "seeds": "seeds", "episodes": "episodes"},
    **{"frames": "frames", "updates": "updates", "base": "base", "minutes": "minutes"},
    "ms a decision": "ms",
}
DIGITS = {
    "seeds": 0,
    "episodes": 0,
    "frames": 0,
    "updates": 0,
    "ms": 2,
}  # behind the point; others 1


def table(rows: Sequence[Row]) -> list[str]:
    """A method a row, the best first."""
    found = [(row, figures(row)) for row in rows]
    found.sort(key=lambda pair: -pair[1].value if not math.isnan(pair[1].value) else math.inf)
    said = equal([one for _, one in found])
    columns = {
        name: key
        for name, key in COLUMNS.items()
        if key not in said and any(known(one, key) for _, one in found)
    }
    value = "mean" if any(one.statistic == "mean" for _, one in found) else "IQM"
    if value == "IQM":
        columns.pop("IQM", None)
    lines = head(["method", value, *columns])
    for row, one in found:
        cells = [row.first.method, number(one.value)]
        cells += [number(getattr(one, key), DIGITS.get(key, 1)) for key in columns.values()]
        lines.append(line(cells))
    return lines


def equal(figures: Sequence[Figures]) -> dict[str, float]:
    """What all rows of a table share, so that it is said once below it."""
    found = {}
    for key in ("episodes", "frames", "updates"):
        values = {getattr(one, key) for one in figures}
        if len(values) == 1 and not math.isnan(min(values)):
            found[key] = values.pop()
    return found


def known(one: Figures, key: str) -> bool:
    """Whether a row has a figure."""
    return not math.isnan(getattr(one, key))


def head(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(names), "|---" * len(names) + "|"]


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def number(value: float, digits: int = 1) -> str:
    """A figure; nothing where it is not known."""
    return (
        "" if math.isnan(value) else f"{value:,.{digits}f}" if not digits else f"{value:.{digits}f}"
    )


def plain(file: Path) -> list[str]:
    """A CSV as it stands. Raises RheoError."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            first, *others = list(csv.reader(stream))
    except (OSError, ValueError) as error:
        raise RheoError(f"{file}: not readable as a table: {error}") from error
    return [*head(first), *(line(cells) for cells in others)]


# ---- below a table -------------------------------------------------------------------------------


def protocol(rows: Sequence[Row]) -> str:
    """How the rows of a table were evaluated, and what sets any of them apart."""
    found = {row.first.method: (row, figures(row)) for row in rows}
    said = equal([one for _, one in found.values()])
    text = "Last checkpoint" + "".join(
        f"{lead}{number(said[key], 0)} {key}{end}" for key, lead, end in SAID if key in said
    )
    kinds: dict[str, list[str]] = {}
    for method, (_, one) in found.items():
        kinds.setdefault(INTERVALS[one.kind], []).append(method)
    text += f". Intervals of 95 %: {listed(kinds)}."
    statistics = {one.statistic for _, one in found.values()}
    if len(statistics) > 1:
        text += " Interquartile means where no mean was recorded."
    text += apart("Deployed", rows, lambda one: one.deployment or "as shipped", quiet=False)
    text += apart("Versions", rows, lambda one: one.versions or "not recorded")
    text += apart("Source", rows, lambda one: SOURCES.get(one.source, one.source))
    notes = {f"{one.method}: {one.note}.": 0 for row in rows for one in row.lines if one.note}
    return " ".join([text, *notes])


SAID = (  # what all rows share: its name, and the words around it
    *(("frames", " after ", ""), ("updates", " after ", "")),
    ("episodes", ", ", " a seed"),
)
MANY = 3  # ways that are named
SOURCES = {
    "runs": "computed from run folders",
    "recorded": "taken over from earlier pages",
}


def apart(
    name: str, rows: Sequence[Row], told: Callable[[Line], str], *, quiet: bool = True
) -> str:
    """What the runs of a table share, or whose differ in it; nothing where shared and quiet."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        for value in dict.fromkeys(map(told, row.runs or [row.first])):
            kinds.setdefault(value, []).append(row.first.method)
    if len(kinds) == 1:
        return "" if quiet else f" {name}: {next(iter(kinds))}."
    if not quiet and len(kinds) > MANY:
        return f" {name} in different ways, as the commands say."
    return f" **{name} differ**: {listed(kinds)}." if quiet else f" {name}: {listed(kinds)}."


def listed(kinds: Mapping[str, Sequence[str]]) -> str:
    """Each of several kinds with whose it is; the name alone of a single one."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items())


def typed(rows: Iterable[Row]) -> list[str]:
    """The commands of every row, and how it is run again."""
    found = []
    for row in rows:
        own = commands(row)
        found += [f"{row.name}: {shlex.join(for_seeds(*each))}" for each in own.items()]
        if not own:
            found.append(f"{row.name}: not recorded")
        if row.first.evaluation:
            found.append(f"{' ' * len(row.name)}  rheo eval RUN {row.first.evaluation}")
    return found


def for_seeds(words: Sequence[str], seeds: Sequence[str]) -> list[str]:
    """A command as it is typed for one seed or several."""
    if len(seeds) > 1 and words[0] == "train":
        return ["rheo", "sweep", *words[1:], f"seed={','.join(seeds)}", "name=NAME"]
    return ["rheo", *words, *(f"seed={seed}" for seed in seeds if seed)]


def footer(page: Page, rows: Sequence[Row]) -> list[str]:
    """Versions and where the numbers are."""
    counts: dict[str, int] = {}
    for row in rows:
        for one in row.runs or [row.first]:
            told = one.versions or "versions not recorded"
            counts[told] = counts.get(told, 0) + 1
    parts = ["## Versions", "\n".join(f"- {count} lines: {told}" for told, count in counts.items())]
    name = f"data/{page.name}.csv"
    text = "Generated by `rheo report summaries=docs/bench/data out=docs/bench`"
    return [*(parts if rows else []), text + (f" from [{name}]({name})." if page.rows else ".")]


def index(pages: Sequence[Page]) -> str:
    """The list of all pages."""
    lines = ["# Benchmark", INTRODUCTION.strip()]
    rows = head(["page", "rows", "tasks", "computed from runs", "taken over"])
    for page in pages:
        tasks = {row.first.environment for row in page.rows.values()}
        ours = sum(row.first.source == "runs" for row in page.rows.values())
        link = f"[{page.told['title']}]({page.name}.md)"
        counts = [len(page.rows), len(tasks), ours, len(page.rows) - ours]
        rows.append(line([link, *map(str, counts if page.rows else ("", "", "", ""))]))
    return "\n\n".join([*lines, "\n".join(rows)]) + "\n"


INTRODUCTION = """
Every table is computed from a file of `data/`, a line a run: no number is copied by hand.
Rows have names:

```
rheo reproduce                               # lists them
rheo reproduce locomotion-v5/rfm/hopper      # runs one again, and compares
rheo report runs/NAME                        # writes report.csv: the lines of your own runs
rheo report summaries=docs/bench/data out=docs/bench      # makes these pages anew
```

Lines of source `recorded` were taken over from earlier pages and have no run folders any more; some
are of all seeds of a row together, and their commands were put together from those pages' text.
"""
