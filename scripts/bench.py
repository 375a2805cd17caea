"""`rheo bench [WHAT ...]`: the speed table, every figure beside its goal and its limit.

Comparisons with other libraries and between our methods lie in tests/bench: they serve who works on
the library, and are no part of it when it is installed.
"""

import csv
import importlib
import io
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rheo.envs.packages import engine_lacks
from rheo.errors import RheoError, nearest
from rheo.files import put_text

from .config.words import Option, count, natural, one_of, positive, switch, values
from .screen import raw
from .store.provenance import version, versions

GROUPS = {  # WHAT -> module and its function from a plan to rows
    "env": ("rheo.scripts.limits", "frames"),
    "envs": ("rheo.scripts.hosting", "rows"),
    "act": ("rheo.scripts.limits", "actions"),
    "update": ("rheo.scripts.limits", "updates"),
    "gpu": ("rheo.scripts.gpu", "rows"),
    "save": ("rheo.scripts.saving", "rows"),
}
NAMED = ("gpu", "save")  # are measured where they are named, and no other time
CLONE = Path(__file__).resolve().parents[1] / "tests" / "bench"
COMPARED = {  # in a clone: beside other libraries and our other methods, in place of the above
    name: (f"bench_{name}", "measure")
    for name in (
        *("env", "update", "actor", "data", "estimator", "finetune", "steer", "variance"),
        *("precision", "startup"),
    )
}
FAULTS = "faults"  # in a clone: promises in place of speed, and a table of its own
FAULTED = ("bench_faults", "main")
Places = list[tuple[str, str]]
Groups = Mapping[str, tuple[str, str]]
WHAT = " ".join({**GROUPS, **COMPARED})
USAGE = {
    "bench": f"usage: rheo bench [{WHAT}] [quick=true] [fast=MODE] [csv=FILE] [json=FILE]\n"
    "       rheo bench gpu [device=cpu|cuda|cuda:N] [worlds=1024,4096] [...]\n"
    "       rheo bench faults [count=20] [seed=0] [only=GROUP,...] [minutes=M out=FOLDER]\n"
    "                         [csv=FILE] [json=FILE]\n"
    "       GROUP: kill damage signals disk fuzz hostile env overhead soak, and GROUP:WORD for\n"
    "       promises whose text has that word. With csv=FILE a second call of the same count and\n"
    "       seed goes on where the file ends: the table in pieces, however they were ended",
}
OTHERS = ("envpool", "stable-baselines3", "warp-lang", "mujoco-warp")  # packages that some rows use
COLUMNS = ("", "unit", "ours", "other", "against", "ratio", "goal", "met", "of limit", "limit")
ANSWERS = {True: "yes", False: "no", None: ""}


def counts(text: str) -> tuple[int, ...]:
    """Reads whole numbers with commas between them."""
    return tuple(count(each) for each in text.split(","))


def groups(text: str) -> tuple[str, ...]:
    """Reads groups of promises with commas between them, of which `:WORD` chooses some."""
    for name in text.split(","):
        one_of(*PROMISED)(name.partition(":")[0])
    return tuple(text.split(","))


PROMISED = (
    *("kill", "damage", "signals", "disk", "fuzz", "hostile", "env", "overhead"),
    "soak",  # is tried where it is named, and no other time
)
OF_FAULTS = {
    **{"count": Option(20, count), "seed": Option(0, natural), "only": Option((), groups)},
    **{"minutes": Option(5.0, positive), "out": Option(None, Path)},
    **dict.fromkeys(("csv", "json"), Option(None)),
}
KEYS = {
    **{"quick": Option(False, switch), "worlds": Option((), counts), "device": Option("auto")},
    **dict.fromkeys(("fast", "csv", "json"), Option(None)),
}


def main(asked: tuple[Places, dict[str, Any]]) -> int:
    """Measures and prints. A goal that is not met is shown as such; the exit status stays 0."""
    places, options = asked
    if places == [FAULTED]:
        return importlib.import_module(FAULTED[0]).main(options, footing())
    from rich.console import Console

    console = Console(file=raw(sys.stdout))
    if not console.is_terminal:
        console = Console(width=180)
    plan = plan_of(options)
    before = os.getloadavg()[0]
    rows = []
    with console.status("measuring") as status:
        for row in measure(places, plan):
            rows.append(row)
            status.update(f"measuring; done: {row.name}")
    console.print(table(rows))
    machine = {**footing(), "load": f"{before:.1f} before, {os.getloadavg()[0]:.1f} after"}
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    if options["csv"] is not None:
        write_csv(Path(options["csv"]), [row.flat() for row in rows])
    if options["json"] is not None:
        content = {"machine": machine, "rows": [row.flat() for row in rows]}
        put_text(Path(options["json"]), json.dumps(content, indent=1) + "\n")
    return 0


def asked(argv: list[str], groups: Groups | None = None) -> tuple[Places, dict[str, Any]]:
    """What to measure and the options. Raises RheoError."""
    tail, groups = f"\n{USAGE['bench']}", groups or offered()
    words, given = ([w for w in argv if ("=" in w) is typed] for typed in (False, True))
    if words == [FAULTS] and groups != GROUPS:
        return [FAULTED], claimed(values(given, OF_FAULTS, tail))
    for word in words:
        if word in (*COMPARED, FAULTS) and word not in groups:
            raise RheoError(f"bench {word}: comparisons run in a clone of the repository alone")
        if word not in groups:
            raise RheoError(f"unknown measurement {word!r}{nearest(word, groups)}{tail}")
    refuse_gpu(words, argv)
    options = claimed(values(given, KEYS, tail))
    chosen = words or [name for name in groups if name not in NAMED]
    return [place for name, place in groups.items() if name in chosen], options


def refuse_gpu(words: list[str], argv: list[str]) -> None:
    """Raises RheoError for `gpu` without its engine, and for its options without it."""
    if "gpu" not in words:
        for word in argv:
            if word.startswith(("worlds=", "device=")):
                raise RheoError(f"{word}: it is of rheo bench gpu alone; leave it out")
        return
    lack = engine_lacks("warp")
    if lack is not None:
        raise RheoError(f"bench gpu: {lack}")


def offered() -> Groups:
    """What can be measured here: an installed library has no comparisons."""
    if not CLONE.is_dir():
        return GROUPS
    homes = (CLONE, CLONE.parent, CLONE.parent / FAULTS)
    sys.path += [str(home) for home in homes if str(home) not in sys.path]
    return {**GROUPS, **COMPARED}


def claimed(options: dict[str, Any]) -> dict[str, Any]:
    """The options, whose files can be written. Raises RheoError."""
    for name in ("csv", "json"):
        if options[name] is not None:
            claim(Path(options[name]))
    return options


def claim(file: Path) -> None:
    """Raises RheoError now rather than after minutes when the file cannot be written."""
    try:
        with file.open("a"):
            pass
    except OSError as error:
        raise RheoError(f"{file}: cannot be written: {error.strerror}") from error


def plan_of(options: dict[str, Any]) -> Any:
    """How to measure. Raises RheoError for an unknown speed mode and a device that is not there."""
    from .assemble import device_of
    from .fast import mode_of
    from .paired import Plan

    mode = None if options["fast"] is None else mode_of(options["fast"])
    quick = {"repeats": 2, "seconds": 0.001, "quick": True} if options["quick"] else {}
    where = {"device": str(device_of(options["device"])), "worlds": options["worlds"]}
    return Plan(**quick, fast=mode, **where)


def measure(places: Places, plan: Any) -> Iterator[Any]:
    """The rows of the groups, on one thread (physics and fine-tuning use all)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for module, function in places:
            yield from getattr(importlib.import_module(module), function)(plan)
    finally:
        torch.set_num_threads(before)


def table(rows: list[Any]) -> Any:
    """All rows for the terminal."""
    from rich.table import Table

    result = Table(*COLUMNS, title="Speed: medians; ratios are paired, with their range")
    for row in rows:
        result.add_row(*cells(row), style="bold" if row.met() is False else None)
    return result


def cells(row: Any) -> list[str]:
    """One line of the table."""
    ratio = share = limit = other = ""
    if row.other is not None:
        other = number(row.other)
    if row.ratio is not None:
        ratio = f"{row.ratio:.2f} [{row.low:.2f}-{row.high:.2f}\\]".replace("[", "\\[", 1)
        ratio = ratio.replace("\\]", "]")
    if row.share is not None:
        share = f"{row.share:.0%}"
        limit = f"{number(row.limit)} {row.limit_unit}"
    goals = ", ".join(str(goal) for goal in row.goals)
    main = [row.name, row.unit, number(row.ours), other, row.versus, ratio, goals]
    return [*main, ANSWERS[row.met()], share, limit]


def number(value: float) -> str:
    """Three or more figures."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def footing() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    import torch

    from .fast import medium_error, medium_is_exact

    packages = {**versions(), **{name: version(name) for name in OTHERS}}
    used = "used" if medium_is_exact() else "not used"
    return {
        "machine": f"{processor()} x {os.cpu_count()}",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "-",
        **{name: found or "-" for name, found in packages.items()},
        "threads": f"1 of torch, {os.cpu_count()} of physics and fine-tuning",
        f'"medium" products {used}, error': f"{medium_error():.1e}",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def processor() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    """One line per row."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    put_text(file, text.getvalue())
