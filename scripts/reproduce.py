"""`rheo reproduce ROW`: a row of the benchmark pages run again, and compared with its interval.

runs/reproduce/made/NAME          bases and data sets that rows begin with, made once
runs/reproduce/ROW/seed=S         the runs, as a sweep makes them; its slashes are hyphens
runs/reproduce/ROW/report.csv     the summary of them, as `rheo report` writes it
"""

import difflib
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rheo.envs.packages import home, importable, pip_install
from rheo.errors import RheoError, nearest
from rheo.files import put_text

from .config import sweeps
from .config import verbs as asking
from .config.reproducing import Reproducing
from .pages import made as all_made
from .pages import number, read
from .store.evaluations import read_evaluation
from .store.provenance import versions
from .store.where import locate, reached, shown
from .summaries import Figures, Line, Made, Row, command_of, figures, text_of

OUTSIDE = 5  # exit status where ours does not lie in the page's interval
MADE, SEED, ROWS = "made", "seed=", "report.csv"
BEGINNINGS = ("data", "init", "actors")  # keys of commands that may name what has to be made


class Plan(NamedTuple):
    """A row that can be run, with what it needs."""

    row: Row
    theirs: Figures
    seeds: list[str]
    needs: list[Made]  # in the order in which they are made
    folder: Path  # of all rows
    dry: bool

    @property
    def own(self) -> Path:
        """The folder of this row's runs."""
        return self.folder / self.row.name.replace("/", "-")


def main(asked: Reproducing) -> int:
    """Runs a row again, or lists all; returns the exit status."""
    folder = Path(asked.summaries)
    rows = {name: row for page in read(folder) for name, row in page.rows.items()}
    made = all_made(folder)
    if asked.row is None:
        return listing(rows, made, locate(asked.out))
    plan = planned(asked, rows, made)
    print(told(plan), flush=True)
    if plan.dry:
        print("\n".join(typed(plan)))
        return 0
    for one in plan.needs:
        code = make(plan, one)
        if code:
            return code
    code = trained(plan)
    return code or compared(plan)


# ---- before any work -----------------------------------------------------------------------------


def listing(rows: dict[str, Row], made: dict[str, Made], folder: Path) -> int:
    """Prints a line a row."""
    for name, row in rows.items():
        found = figures(row)
        cost = "minutes not recorded"
        if not math.isnan(found.minutes):
            cost = f"{found.seeds} x {found.minutes:.1f} minutes"
        lacks = missing(row, made, folder)
        print(f"{name}: {number(found.value)} {row.first.metric}, {cost}"
              + (f"; not here: {lacks}" if lacks else ""))  # fmt: skip
    return 0


def planned(asked: Reproducing, rows: dict[str, Row], made: dict[str, Made]) -> Plan:
    """The row with all that it needs. Raises RheoError for one that cannot be run again."""
    assert asked.row is not None
    if asked.row not in rows:
        raise RheoError(f"row {asked.row!r}: there is none{alike(asked.row, rows)}\n"
                        "`rheo reproduce` lists them")  # fmt: skip
    row, folder = rows[asked.row], locate(asked.out)
    lacks = missing(row, made, folder)
    if lacks:
        raise RheoError(f"{row.name}: {lacks}")
    found = figures(row)
    seeds = asked.seeds or [line.seed for line in row.runs] or list(map(str, range(found.seeds)))
    needs = needed(command_of(row, seeds[0]), made)
    return Plan(row, found, seeds, needs, folder, asked.dry)


def alike(name: str, rows: Iterable[str]) -> str:
    """A clause with the rows that are called most alike."""
    rows = list(rows)
    close = difflib.get_close_matches(name, rows, n=3, cutoff=0.55)
    close = close or [row for row in rows if name in row.split("/")][:3]
    return f"; did you mean {' or '.join(close)}?" if close else nearest(name, rows)


def missing(row: Row, made: dict[str, Made], folder: Path) -> str:
    """What keeps a row from being run again here; empty where nothing does."""
    words = command_of(row, "")
    if not words:
        return "its command is not recorded"
    module, package = home(row.first.environment.partition(" ")[0])
    if not importable(module):
        return f"{row.first.environment.partition(' ')[0]} needs a package: {pip_install(package)}"
    for one in needed(words, made):
        place = folder / MADE / one.name
        if not one.command and not place.exists():
            return f"begins with {one.name}, which lacks {one.lacks}; put it at {shown(place)}"
    return ""


def needed(words: Sequence[str], made: dict[str, Made]) -> list[Made]:
    """What a command begins with, and what that begins with before it."""
    found: list[Made] = []
    for word in words:
        key, _, value = word.partition("=")
        if key in BEGINNINGS and value in made:
            own = made[value]
            found += [*needed(shlex.split(own.command), made), own]
    return list({one.name: one for one in found}.values())


def told(plan: Plan) -> str:
    """What will be run, how long it took there, and which versions differ."""
    theirs, count = plan.theirs, len(plan.seeds)
    counts = {"frames": theirs.frames, "updates": theirs.updates}
    each = [f"{number(x, 0)} {name}" for name, x in counts.items() if not math.isnan(x)]
    base = [one for one in plan.needs if one.command]
    minutes = [one.minutes for one in base if not math.isnan(one.minutes)]
    cost = "its minutes were not recorded"
    if not math.isnan(theirs.minutes):
        whole = number(sum(minutes) + count * theirs.minutes)
        unknown = [one.name for one in base if math.isnan(one.minutes)]
        more = f" and those of {', '.join(unknown)}" if unknown else ""
        cost = f"about {whole} minutes on the page's machine{more}"
    runs = f"{count} run{'s' * (count > 1)} of {', '.join(each) or 'a length not recorded'}"
    lines = [f"{plan.row.name}: {runs}; {cost}"]
    if plan.needs:
        lines.append(f"begins with {', '.join(one.name for one in plan.needs)}")
    return "\n".join([*lines, apart(plan.row)])


def apart(row: Row) -> str:
    """The versions that differ from those of the row."""
    known = dict(word.rsplit(" ", 1) for word in row.first.versions.split(", ") if " " in word)
    if not known:
        return "versions: those of the page are not recorded"
    now = versions()
    other = [f"{name} {old}, here {now.get(name)}" for name, old in known.items()
             if str(now.get(name)) != old]  # fmt: skip
    return f"versions: {'; '.join(other) or 'those of the page'}"


def typed(plan: Plan) -> list[str]:
    """The commands that will be run."""
    found = [shlex.join(["rheo", *made_by(plan, one)]) for one in plan.needs if one.command]
    for seed in plan.seeds:
        run = plan.own / f"{SEED}{seed}"
        found.append(shlex.join(["rheo", *words_for(plan, seed), f"name={run}"]))
        if plan.row.first.evaluation:
            found.append(f"{shlex.join(['rheo', 'eval', str(run)])} {plan.row.first.evaluation}")
    return found


# ---- what is run ---------------------------------------------------------------------------------


def located(words: Sequence[str], folder: Path, needs: Iterable[str]) -> list[str]:
    """A command's words with what was made where it lies."""
    needs, found = set(needs), []
    for word in words:
        key, _, value = word.partition("=")
        here = key in BEGINNINGS and value in needs
        found.append(f"{key}={folder / MADE / value}" if here else word)
    return found


def words_for(plan: Plan, seed: str) -> list[str]:
    """The command of one seed, from the verb on, without a name."""
    words = located(command_of(plan.row, seed), plan.folder, [one.name for one in plan.needs])
    return [*words, f"{SEED}{seed}"]


def made_by(plan: Plan, one: Made) -> list[str]:
    """The command of a base or data set, from the verb on, with the place that it is put."""
    verb, *words = shlex.split(one.command)[1:]
    words = located(words, plan.folder, [each.name for each in plan.needs])
    place = plan.folder / MADE / one.name
    words = [word for word in words if word.partition("=")[0] not in ("out", "name")]
    return [verb, *words, f"{'out' if verb == 'collect' else 'name'}={place}"]


def make(plan: Plan, one: Made) -> int:
    """Makes a base or a data set that is not there yet; returns the exit status."""
    place = plan.folder / MADE / one.name
    if not one.command or place.is_file():
        return 0
    verb, *words = made_by(plan, one)
    if verb == "collect":
        print(f"making {shown(place)}", flush=True)
        from . import collect  # torch

        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            return collect.main(asking.collect(words))
        except RheoError:
            if place.exists():  # a part of it, kept: the whole is still to be made
                place.replace(place.with_name(f"part-{place.name}"))
            raise
    from . import sweep

    words = [word for word in words if not word.startswith("name=")]
    return sweep.main(sweeps.of_runs(str(place.parent), {one.name: words}))


def trained(plan: Plan) -> int:
    """Trains what is not trained yet of a row, and evaluates it; returns the exit status."""
    from . import sweep

    words = {f"{SEED}{seed}": words_for(plan, seed)[1:] for seed in plan.seeds}
    code = sweep.main(sweeps.of_runs(str(plan.own), words))
    if code or not plan.row.first.evaluation:
        return code
    from . import evaluate  # torch

    for name in words:
        asked = asking.evaluate([str(plan.own / name), *shlex.split(plan.row.first.evaluation)])
        if not evaluated(plan.own / name, evaluate.label_of_all(asked), asked.episodes):
            evaluate.main(asked)
    return 0


def evaluated(run: Path, label: str, episodes: int) -> bool:
    """Whether a run's last checkpoint was evaluated so, with as many episodes."""
    from .compare import last_evaluation

    try:
        rows = read_evaluation(last_evaluation(run, label, reached(run)))
    except RheoError:
        return False
    return len(rows["episodes"]) >= episodes


# ---- what came of it -----------------------------------------------------------------------------


def compared(plan: Plan) -> int:
    """Prints ours beside the page's, with the same statistic; returns the exit status."""
    ours, theirs = summarised(plan), plan.theirs
    mine = (ours.value, ours.low, ours.high)
    if theirs.statistic == "IQM":
        mine = (ours.iqm, math.nan, math.nan)
    print(f"{'':6}{theirs.statistic:>12}{'low':>12}{'high':>12}{'seeds':>8}")
    page = (theirs.value, theirs.low, theirs.high)
    for who, value, seeds in (("page", page, theirs.seeds), ("here", mine, ours.seeds)):
        print(f"{who:6}" + "".join(f"{number(one) or '-':>12}" for one in value) + f"{seeds:>8}")
    if math.isnan(theirs.low):
        print("the page has no interval of this row")
        return 0
    if theirs.low <= mine[0] <= theirs.high:
        print("inside the page's interval")
        return 0
    side = f"{theirs.low - mine[0]:.1f} below" if mine[0] < theirs.low else ""
    print(f"outside the page's interval: {side or f'{mine[0] - theirs.high:.1f} above'} it")
    return OUTSIDE


def summarised(plan: Plan) -> Figures:
    """Figures of the runs that were made, whose summary is written beside them."""
    from . import evaluate, report
    from .compare import Group, read

    row, label = plan.row, ""
    runs = [plan.own / f"{SEED}{seed}" for seed in plan.seeds]
    if row.first.evaluation:
        words = [str(runs[0]), *shlex.split(row.first.evaluation)]
        label = evaluate.label_of_all(asking.evaluate(words))
    group = Group(row.name, [read(run, row.first.metric, label) for run in runs])
    panel = report.Panel(row.first.environment, row.first.metric, [group])
    lines: list[Line] = [
        report.line_of(row.name, row.first.method, panel, one, label) for one in group.results
    ]
    whole = report.all_of(group, lines) if len(lines) > 1 else None
    put_text(plan.own / ROWS, text_of([*([whole] if whole else []), *lines]))
    return figures(Row(row.name, lines, whole))
