"""`rheo checkpoint verify`: whether every file of a run is as it was written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rheo.errors import MACHINE, RheoError
from rheo.files import sha256

from .store import checkpoint
from .store.evaluations import read_evaluation
from .store.journal import Journal, Written
from .store.provenance import starts_of
from .store.run import DATA
from .store.stamps import is_whole, unstamped
from .store.vouch import CONFIG, entries, told
from .store.where import MANIFEST, existing, found, shown, stored


class Finding(NamedTuple):
    """What was looked at, and what is wrong with it."""

    what: str
    fault: str  # empty: it is whole
    remark: str = ""


def main(name: str) -> int:
    """Prints a line a file; returns 0 where all are whole, else 3. Raises RheoError."""
    run = existing(name)
    findings = []
    for finding in look(run):
        findings.append(finding)
        said = f"FAULT: {finding.fault}" if finding.fault else f"whole{finding.remark}"
        print(f"{finding.what:45} {said}", flush=True)
    faults = sum(bool(finding.fault) for finding in findings)
    print(f"{shown(run)}: {len(findings)} looked at, {faults or 'none'} with a fault")
    return MACHINE if faults else 0


def look(run: Path) -> Iterator[Finding]:
    """Checkpoints, newest first, then what else there is of a run."""
    saved = found(run / "ckpt")
    for path in saved:
        yield from of_checkpoint(run, path)
    for path in checkpoint.halves(run / "ckpt"):
        yield Finding(str(path.relative_to(run)), f"has no {MANIFEST}")
    if not saved:
        yield Finding("ckpt", "there is no checkpoint")
    yield from of_settings(run)
    yield from of_words(run, told(saved[0], MANIFEST) if saved else None)
    yield from of_log(run)


def of_checkpoint(run: Path, path: Path) -> Iterator[Finding]:
    """The files of one checkpoint, and the rows that were logged before it."""
    place = path.relative_to(run)
    try:
        manifest = checkpoint.read_manifest(path)
    except checkpoint.Broken as error:
        yield Finding(f"{place}/{MANIFEST}", reason(error, path / MANIFEST))
        return
    yield Finding(f"{place}/{MANIFEST}", "")
    for name, entry in manifest["files"].items():
        try:
            checkpoint.verify(path / name, entry)
        except checkpoint.Broken as error:
            yield Finding(f"{place}/{name}", reason(error, path / name))
        else:
            yield Finding(f"{place}/{name}", "", f", {entry['size']:,} bytes")
    kept = told(path, MANIFEST)
    if kept is not None:
        count = kept["rows"]["count"]
        lines = Journal(run / "metrics.jsonl").lines()[:count]
        same = Written.of(lines).digest.hexdigest() == kept["rows"]["sha256"]
        what = "" if same else f"of {count} rows before this save not all are as they were"
        yield Finding(f"{place}: log", what, f", {count} rows")
        for file, digest in kept["programs"].items():
            yield Finding(f"{place}: program", program(Path(file), digest), f", {file}")


def program(file: Path, digest: str) -> str:
    """What is wrong with a program that a run calls."""
    try:
        return "" if sha256(file) == digest else f"{file} is another one than at this save"
    except OSError as error:
        return f"{file}: {error.strerror or error}"


def of_settings(run: Path) -> Iterator[Finding]:
    """config.yaml, and whether it is what was trained with."""
    file = run / CONFIG
    try:
        raw = file.read_bytes()
        stored(run)
    except OSError as error:
        yield Finding(CONFIG, str(error.strerror or error))
    except RheoError as error:
        yield Finding(CONFIG, reason(error, file))
    else:
        fault = "altered, its digest does not match" if is_whole(raw) is False else ""
        lost = is_whole(raw) is None and any(told(each, MANIFEST) for each in found(run / "ckpt"))
        yield Finding(CONFIG, fault or "has lost its digest" * lost, unmarked(is_whole(raw)))


def of_words(run: Path, kept: dict[str, Any] | None) -> Iterator[Finding]:
    """run.json and data.json."""
    fault = "" if (run / "run.json").exists() else "is gone"
    try:
        starts_of(run / "run.json")
    except ValueError as error:
        fault = str(error)
    yield Finding("run.json", fault)
    meaning, file = (kept or {}).get("meaning"), run / DATA
    if not meaning and not file.exists():
        return
    try:
        same = meaning is None or unstamped(file.read_bytes()) == meaning
        yield Finding(DATA, "" if same else "is not what the checkpoint keeps of it")
    except (OSError, ValueError) as error:
        yield Finding(DATA, getattr(error, "strerror", None) or str(error))


def of_log(run: Path) -> Iterator[Finding]:
    """metrics.jsonl, and the evaluations that it names or that are there."""
    journal = Journal(run / "metrics.jsonl")
    lines, rows = len(journal.lines()), journal.rows()
    fault = f"{lines - len(rows)} of {lines} rows are damaged" if lines > len(rows) else ""
    yield Finding("metrics.jsonl", fault, f", {lines} rows")
    files = {file for file in entries(run / "eval") if file.suffix == ".json"}
    judged = (row["step"] for row in rows if row.get("eval/return") is not None)
    files |= {run / "eval" / f"{step:012d}.json" for step in judged}
    for file in sorted(files):
        try:
            read_evaluation(file)
            yield Finding(str(file.relative_to(run)), "")
        except RheoError as error:
            yield Finding(str(file.relative_to(run)), reason(error, file))


def unmarked(whole: bool | None) -> str:
    """What is said of a file that never had a digest."""
    return ", of a version without digests" if whole is None else ""


def reason(error: Exception, file: Path) -> str:
    """A message without the file that it begins with."""
    return str(error).removeprefix(f"{file}").lstrip(": ")
