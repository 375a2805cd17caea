"""eval/<step>[-<label>].json: per-episode rows of an evaluation and what they come to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rheo.errors import MACHINE, RheoError

from .stamps import unstamped


def read_evaluation(file: Path) -> dict[str, Any]:
    """An evaluation, whose numbers are as they were written. Raises RheoError (code 3)."""
    try:
        found = unstamped(file.read_bytes())
        problem = odd(found)
        if problem:
            raise ValueError(problem)
    except OSError as error:
        why = error.strerror or error
        raise RheoError(f"{file}: {why}; evaluate the run anew (rheo eval)", MACHINE) from error
    except ValueError as error:
        raise RheoError(
            f"{file}: {error}; move it away and evaluate the run anew (rheo eval)", MACHINE
        ) from error
    return found


def odd(found: Mapping[str, Any]) -> str:
    """What is not as an evaluation has it; empty where all is."""
    rows, references = found.get("episodes"), found.get("references")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return "lists no episodes"
    if type(found.get("step")) is not int or found["step"] < 0:
        return "names no step"
    if not all(value is None or is_number(value) for row in rows for value in row.values()):
        return "its episodes hold something other than numbers"
    if any(not (value is None or is_number(value)) for value in map(found.get, FIGURES)):
        return f"one of {', '.join(FIGURES)} is no number"
    if references is not None and not (
        isinstance(references, dict) and all(is_number(references.get(k)) for k in ("low", "high"))
    ):
        return "its references are no two returns"
    if not isinstance(found.get("env") or "", str) or not isinstance(found.get("label") or "", str):
        return "its environment has no name"
    changed = found.get("changed") or []
    if not isinstance(changed, list) or not all(isinstance(word, str) for word in changed):
        return "it tells no words that were changed"
    return ""


FIGURES = ("decision_ms", "eval/return", "eval/success_once", "eval/success_at_end", "eval/cost")


def is_number(value: Any) -> bool:
    """A number that arithmetic can be done with."""
    return isinstance(value, float) or isinstance(value, int) and abs(value) < 2**63
