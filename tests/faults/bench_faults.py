"""`rheo bench faults`: every promise with how often it was tried, and how often it was not kept."""

import importlib
from pathlib import Path
from typing import Any

import soak
from trials import Failure, Promise, Row, measure, write_csv, write_json

MODULES = (
    *("kills", "writers", "damage", "stops", "disks", "fuzz", "hostile", "programs"),
    *("environments", "soak"),
)
ALONE = ("soak",)  # where it is named, and no other time


def promises(only: tuple[str, ...] = ()) -> list[Promise]:
    """All of them, or those of some groups."""
    every = [one for name in MODULES for one in importlib.import_module(name).PROMISES]
    return [one for one in every if not only or any(is_of(one, name) for name in only)]


def is_of(promise: Promise, name: str) -> bool:
    """Whether a promise is of GROUP, or of GROUP:WORD."""
    group, _, word = name.partition(":")
    return promise.group == group and word in promise.text


def main(options: dict[str, Any], machine: dict[str, Any]) -> int:
    """Tries what was asked, prints the table and writes files; 1 when a promise was not kept."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    only = options["only"]
    chosen = promises(only)
    with console.status("trying") as status:

        def tell(text: str) -> None:
            status.update(text[:150].replace("[", "\\["))
            if text.startswith(("FAILED", "soak:")):
                console.print(text, markup=False, highlight=False)

        if set(ALONE) & set(only):
            chosen.append(soak.promise(options["out"], options["minutes"], tell))
        rows, failures = measure(chosen, options["count"], options["seed"], tell)
    console.print(table(rows))
    write(options, machine, rows, failures)
    return int(bool(failures))


def write(
    options: dict[str, Any], machine: dict[str, Any], rows: list[Row], failures: list[Failure]
) -> None:
    """The files that were asked for."""
    if options["csv"] is not None:
        write_csv(Path(options["csv"]), rows)
    if options["json"] is not None:
        write_json(Path(options["json"]), machine, rows, failures)


def table(rows: list[Row]) -> Any:
    """For the terminal."""
    from rich.table import Table

    found = Table("promise", "tried", "failed", "minutes", title="Promises and faults")
    for row in rows:
        cells = [row.promise, str(row.tried), str(row.failed), f"{row.seconds / 60:.1f}"]
        cells = [row.promise, row.note, "", ""] if row.note else cells
        found.add_row(*cells, style="bold" if row.failed else None)
    return found
