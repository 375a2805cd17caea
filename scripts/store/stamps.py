"""Checks that files of a run carry inside, so that a flipped digit is not another result.

A JSON object has a `crc` as its last key: CRC-32 of all that is before it. Text has a last line
with its SHA-256. They tell damage, not forgery: whoever means to change a file can stamp it anew.
"""

import hashlib
import json
import re
import zlib
from typing import Any

TAIL = 64  # bytes at a file's end in which its stamp is
STAMP = re.compile(rb',\s*"(.{3})"\s*:\s*"(.{8})"\s*\}\s*\Z', re.DOTALL)
LINE = "# sha256 of the lines above: "


def dump(node: Any) -> bytes:
    """Canonical JSON."""
    return json.dumps(node, sort_keys=False, allow_nan=False, separators=(",", ":")).encode()


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest with its own digest in it."""
    return dump({**manifest, "sha256": hashlib.sha256(dump(manifest)).hexdigest()})


def stamped(node: dict[str, Any], indent: int | None = None) -> str:
    """A JSON object that is not empty, on one line or more, with its check as its last key."""
    text = json.dumps(node, indent=indent)[:-1].rstrip()
    return text + stamp_of(text.encode()).decode()


def stamp_of(text: bytes) -> bytes:
    """What follows a JSON object's text up to its closing bracket."""
    return b', "crc": "%08x"}\n' % zlib.crc32(text)


def unstamped(raw: bytes) -> dict[str, Any]:
    """The JSON object of a stamped text, or of an older one that never had a stamp.

    Raises ValueError with what is wrong, whatever the text holds.
    """
    end = STAMP.search(raw, max(0, len(raw) - TAIL))
    if end is not None and raw[end.start() :].rstrip() != stamp_of(raw[: end.start()]).rstrip():
        raise ValueError("altered, its check does not match")
    try:
        node = json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(node, dict):
        raise ValueError(f"holds a {type(node).__name__} and no object")
    node.pop("crc", None)
    return node


def lined(text: str) -> str:
    """Text with its SHA-256 as a last line, a comment of YAML."""
    return f"{text}{LINE}{hashlib.sha256(text.encode()).hexdigest()}\n"


def is_whole(raw: bytes) -> bool | None:
    """Whether text is as `lined` wrote it; None where it never had such a line."""
    body, newline, last = raw.rstrip(b"\n").rpartition(b"\n")
    if LINE[2:-2].encode() not in raw and not last.startswith(b"#"):
        return None
    return raw == lined((body + newline).decode(errors="replace")).encode()
