"""`rheo bench faults`: every promise with how often it was tried, and how often it was not kept."""

import importlib
from pathlib import Path
from typing import Any

import soak
from pieces import Pieces
from trials import Promise, Row, measure

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
    """Tries what was asked, prints the table and writes files; 1 when a promise was not kept.

    Raises RheoError for a file of an earlier call that cannot be gone on with.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    only = options["only"]
    chosen, known = promises(only), pieces(options, machine)
    if taken := known.taken(chosen):
        console.print(taken, markup=False, highlight=False)
    with console.status("trying") as status:

        def tell(text: str) -> None:
            status.update(text[:150].replace("[", "\\["))
            if text.startswith(("FAILED", "soak:")):
                console.print(text, markup=False, highlight=False)

        if set(ALONE) & set(only):
            chosen.append(soak.promise(options["out"], options["minutes"], tell))
            known.rows.pop(chosen[-1].text, None)  # goes on by itself, in its folder
        try:
            rows, _ = measure(chosen, options["count"], options["seed"], tell, known)
        finally:
            known.write()
    console.print(table(rows))
    return int(any(row.failed for row in rows))


def pieces(options: dict[str, Any], machine: dict[str, Any]) -> Pieces:
    """What earlier calls wrote into the files that are asked for. Raises RheoError."""
    table, all_of_it = (
        None if options[name] is None else Path(options[name]) for name in ("csv", "json")
    )
    return Pieces(table, all_of_it, options["count"], options["seed"], machine)


def table(rows: list[Row]) -> Any:
    """For the terminal."""
    from rich.table import Table

    found = Table("promise", "tried", "failed", "minutes", title="Promises and faults")
    for row in rows:
        cells = [row.promise, str(row.tried), str(row.failed), f"{row.seconds / 60:.1f}"]
        cells = [row.promise, row.note, "", ""] if row.note else cells
        found.add_row(*cells, style="bold" if row.failed else None)
    return found
