"""What pages of README and docs are made of: `python tests/reference.py` writes it anew.

A page has `<!-- made: WHAT WORDS -->` and `<!-- end -->` around it. It comes from the files that
the programs read: help texts, docstrings, values, and the summaries behind docs/bench.
"""

import csv
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from rheo.scripts import cli, info, summaries
from rheo.scripts.config import meanings, suites

HOME = Path(__file__).resolve().parents[1]
DATA = HOME / "docs" / "bench" / "data"
METHODS = HOME / "docs" / "methods"
PART = re.compile(r"(<!-- made: ([^\n]+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
LISTED = ("policy", "policy/net", "critic", "eye", "source")  # groups of docs/reference/choices.md


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; bars inside of cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(
        f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in cells
    )


def plain(text: str) -> str:
    """A docstring's words, of which nothing is read as a tag or as stress."""
    return re.sub(r"([<*])", lambda found: {"<": "&lt;", "*": "\\*"}[found[1]], text)


# ---- the command line ----------------------------------------------------------------------------


def command_line() -> str:
    """All help texts."""
    parts = [f"```\n{cli.usage()}\n```"]
    for verb in cli.VERBS:
        own = cli.programs(cli.ASKED[verb][0]).USAGE.get(verb)
        parts.append(f"## rheo {verb}\n\n```\n{own or cli.VERBS[verb][2]}\n```")
    return "\n\n".join(parts)


# ---- choices and their keys ----------------------------------------------------------------------


def algorithms() -> str:
    """Every algorithm: its kind, what it is, the page that has it."""
    pages = {}
    for page in sorted(METHODS.glob("*.md")):
        for what in re.findall(r"<!-- made: keys (.*?) -->", page.read_text()):
            pages |= dict.fromkeys(what.split(), page.name)
    found = [info.read("algo", name) for name in info.names("algo")]
    rows = []
    for kind in info.KINDS:
        for one in found:
            if info.kind(one) == kind:
                name = f"[`{one.name}`]({pages[one.name]}#keys)"
                made = info.target(one, "algo")
                papers = ", ".join(meanings.papers(made)) if made else ""
                rows.append([name, kind, plain(info.line(one, "algo")), papers])
    return table(["algorithm", "kind", "what", "papers"], rows)


def keys(*algos: str) -> str:
    """The keys of several algorithms in one table."""
    return merged("algo", algos)


def choices() -> str:
    """Every choice of the groups without pages of their own, and their keys."""
    parts = []
    for group in LISTED:
        names = info.names(group)
        rows = [[f"`{name}`", plain(info.line(info.read(group, name), group))] for name in names]
        listed = table([f"`{group}=`", "what"], rows)
        parts.append(f"## {group}\n\n{info.GROUPS[group]}\n\n{listed}\n\n{merged(group, names)}")
    rows = [[f"`{name}`", info.line(info.read("recipe", name), "recipe")]
            for name in info.names("recipe")]  # fmt: skip
    parts.append(f"## recipe\n\n{info.GROUPS['recipe']}\n\n{table(['`recipe=`', 'what'], rows)}")
    return "\n\n".join(parts)


def merged(group: str, names: Sequence[str]) -> str:
    """Keys of several choices of a group: one row where place, kind and meaning are the same."""
    rows: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for name in names:
        for key in info.described(*info.composed(group, info.read(group, name))):
            told = rows.setdefault((key.place, key.kind, key.meaning), {})
            told.setdefault(key.value, []).append(name)
    lines = []
    for (where, kind, meaning), values in sorted(rows.items(), key=lambda row: depth(row[0][0])):
        everywhere = len(values) == 1 and len(next(iter(values.values()))) == len(names)
        shown = "; ".join(f"`{value}`" + ("" if everywhere else f" {', '.join(of)}")
                          for value, of in values.items())  # fmt: skip
        lines.append([f"`{where}`", shown, kind.replace("<", "&lt;"), plain(meaning)])
    return table(["key", "value", "takes", "meaning"], lines)


def depth(place: str) -> tuple[int, str]:
    """Keys of the node itself first, then those of the nodes inside it, each by name."""
    return place.count("."), place


def run_keys() -> str:
    """The keys of a run beside its groups."""
    rows = [[f"`{key.place}`", f"`{key.value}`", key.kind, plain(key.meaning)]
            for key in info.of_run()]  # fmt: skip
    return table(["key", "value", "takes", "meaning"], rows)


def environments() -> str:
    """Every environment by its word."""
    found = [info.read("env", name) for name in info.names("env")]
    rows = [[f"`{one.name}`", str(one.tree.get("id")).replace("???", "`env.id=...`"),
             plain(one.note)] for one in found]  # fmt: skip
    return table(["`env=`", "id", "note"], rows)


def environment_keys() -> str:
    """The keys that every environment has."""
    return merged("env", ["hopper"])


def imagined_keys() -> str:
    """The keys of imagined environments."""
    return merged("env", ["imagined"])


def suite_list() -> str:
    """Suites with their tasks."""
    rows = []
    for name, one in suites.suites().items():
        ((key, values),) = one["tasks"].items()
        rows.append([f"`{name}`", one["about"], f"`{key}=`: " + ", ".join(values)])
    return table(["suite", "protocol", "tasks"], rows)


# ---- the matrix of the README --------------------------------------------------------------------


class Method(NamedTuple):
    """A row of the matrix."""

    name: str
    kind: str
    start: str  # what it starts from
    robots: str  # its rows of summaries, {} for a task; empty: none
    door: str = ""
    arm: str = ""
    value: str = "value"  # of the figures of its robots and its door


ROBOTS, ARMS = ("hopper", "walker2d", "halfcheetah"), ("push", "pick-place")
CLONE = "a clone"
MATRIX = (
    Method("sac", "from scratch", "nothing", "locomotion-v5/sac/{}"),
    Method("rfm", "from scratch", "nothing", "locomotion-v5/rfm/{}"),
    Method("qsm", "from scratch", "nothing", "locomotion-v5/qsm/{}"),
    Method("bc", "clone", "recordings", "finetune/reinflow4/{}", "steering/dsrl_na/door",
           "metaworld/clone/{}", "base"),
    Method("reinflow", "tune", CLONE, "finetune/reinflow4/{}", "steering/reinflow4/door",
           "metaworld/reinflow/{}"),
    Method("awm_gae", "tune", CLONE, "finetune/awm_gae/{}", "", "metaworld/awm/{}"),
    Method("dppo", "tune", CLONE, "finetune/dppo/{}"),
    Method("ppo", "tune", "a Gaussian clone", "finetune/ppo/{}", "", "metaworld/ppo/{}"),
    Method("dsrl_na", "steer", CLONE, "steering/dsrl_na/{}", "steering/dsrl_na/door",
           "metaworld/dsrl/{}"),
    Method("dsrl_sac", "steer", CLONE, "steering/dsrl_sac/{}", "steering/dsrl_sac/door"),
    Method("expo", "edit", CLONE, "steering/expo/{}", "steering/expo/door"),
    Method("resip", "correct", CLONE, "steering/resip/{}", "steering/resip-500k/door",
           "metaworld/resip/{}"),
)  # fmt: skip


def matrix() -> str:
    """A number per method and task, from the summaries; the best of clones' heirs is bold."""
    files = ("finetune", "from-scratch", "steering", "manipulation")
    lines = [
        one for name in files for one in summaries.lines_of(DATA / f"{name}.csv", summaries.Line)
    ]
    found = {name: summaries.figures(row) for name, row in summaries.rows_of(lines).items()}
    numbers = [cells_of(method, found) for method in MATRIX]
    tuned = [
        cells for method, cells in zip(MATRIX, numbers, strict=True) if "clone" in method.start
    ]
    best = [max(cell for cell in column if cell is not None) for column in zip(*tuned, strict=True)]
    rows = []
    for method, cells in zip(MATRIX, numbers, strict=True):
        kept = best if "clone" in method.start else [None] * len(best)
        shown = [three(cell, cell == most) for cell, most in zip(cells, kept, strict=True)]
        rows.append([f"`{method.name}`", method.kind, method.start, *shown, *costs(method, found)])
    tasks = ["Hopper", "Walker2d", "HalfCheetah", "door %", "push %", "pick-place %"]
    return table(["method", "kind", "from", *tasks, "frames", "minutes"], rows)


def cells_of(method: Method, found: Mapping[str, summaries.Figures]) -> list[float | None]:
    """A method's numbers, task by task; None where it was not measured."""
    robots = [(method.robots.format(task), method.value) for task in ROBOTS]
    arms = [(method.arm.format(task), "value") for task in ARMS]
    asked = [*robots, (method.door, method.value), *arms]
    return [getattr(found[row], value) if row in found else None for row, value in asked]


def costs(method: Method, found: Mapping[str, summaries.Figures]) -> list[str]:
    """Frames and minutes of a robot's run, the largest; of a base none."""
    if method.value == "base":
        return ["", ""]
    rows = [found[name] for name in map(method.robots.format, ROBOTS) if name in found]
    frames = max(round(row.frames, -3) for row in rows)
    minutes = [row.minutes for row in rows if row.minutes == row.minutes]
    return [f"{frames:,.0f}", three(max(minutes)) if minutes else ""]


def three(value: float | None, bold: bool = False) -> str:
    """A number by three digits; None is empty."""
    if value is None:
        return ""
    text = f"{float(f'{value:.3g}'):,.10g}"
    return f"**{text}**" if bold else text


# ---- the field -----------------------------------------------------------------------------------


def field() -> str:
    """Published systems, each with its command or the reason why it has none."""
    rows = yaml.safe_load((METHODS / "field.yaml").read_text())
    cells = [
        [row["name"], str(row["year"]), f"`{row['run']}`" if "run" in row else "", told(row)]
        for row in rows
    ]
    return table(["system", "year", "command", "what, or why not"], cells)


def told(row: Mapping[str, str]) -> str:
    """What was changed for control and the test that holds it, or why there is nothing."""
    if "why" in row:
        return row["why"]
    return "; ".join(filter(None, [row.get("note"), f"`{row['test']}`"]))


# ---- promises ------------------------------------------------------------------------------------


def promises() -> str:
    """How often promises were tried and not kept, as `rheo bench faults` wrote it."""
    with (DATA / "faults.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    head = ["promise", "tried", "failed"]
    return table(head, [[row[name] for name in head] for row in rows])


# ---- the site's first page ----------------------------------------------------------------------


def home() -> str:
    """The README as a page of docs: its links from there, without what lies outside."""
    text = re.sub(r"<!-- .*? -->\n\n?", "", filled((HOME / "README.md").read_text()))
    text = re.sub(r"\[([^]]*)\]\((?:CONTRIBUTING|CHANGELOG)\.md\)", r"\1", text)
    return text.replace("](docs/", "](").strip()


# ---- pages ---------------------------------------------------------------------------------------

MADE: dict[str, Callable[..., str]] = {
    **{"algorithms": algorithms, "keys": keys, "choices": choices, "suites": suite_list},
    **{"environment_keys": environment_keys, "run_keys": run_keys},
    **{"imagined_keys": imagined_keys},
    **{"environments": environments, "command_line": command_line, "matrix": matrix},
    **{"promises": promises, "home": home, "field": field},
}


def pages() -> list[Path]:
    """README and all of docs."""
    return [HOME / "README.md", *sorted((HOME / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """A page's text with its made parts made anew."""

    def part(found: re.Match[str]) -> str:
        what, *words = found[2].split()
        return f"{found[1]}\n{MADE[what](*words)}\n\n{found[4]}"

    return PART.sub(part, text)


if __name__ == "__main__":
    for page in pages():
        old = page.read_text()
        new = filled(old)
        if new != old:
            page.write_text(new)
            print(page.relative_to(HOME), file=sys.stderr)
