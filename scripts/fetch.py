"""Public data sets by name: resumable, checked before they get their name, SHA-256 beside them."""

import http.client
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from rheo.envs.data.catalogue import addresses, file_name, home, known
from rheo.envs.data.containers import HDF5, ZIP
from rheo.envs.data.formats import head
from rheo.envs.data.recording import Reading, Refused
from rheo.envs.memory import size_text
from rheo.envs.paths import expanded
from rheo.errors import MACHINE, RheoError, nearest
from rheo.files import put_text, sha256

PIECE = 1 << 20  # bytes
FORMATS = {".hdf5": (HDF5, "an HDF5 file"), ".npz": (ZIP, "an .npz file")}  # how they begin
TIMEOUT = 60  # seconds without an answer
BROKEN_OFF = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
ATTEMPTS = 3  # a connection that breaks off is taken up again


class Answer(NamedTuple):
    """What a server says before the bytes: offset of the first, size of the whole, its version."""

    offset: int
    total: int | None
    version: str | None


def fetch(name: str, source: str | None = None, to: str | None = None, yes: bool = False) -> int:
    """Gets a data set into a folder: `NAME.part` while it comes, then its file and `NAME.json`.

    source: a file or address other than the public one. Raises RheoError.
    """
    data_set = known(name)
    if data_set is None:
        hint = nearest(name.replace("_", "-"), addresses())
        raise RheoError(f"unknown data set {name!r}{hint}\nthere are:\n{listed()}")
    target = (expanded(to) if to else home()) / file_name(data_set)
    card, part = target.with_suffix(".json"), target.with_suffix(".part")
    if target.exists():
        return already(target, card)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source is None or "://" in source:
            url = source or addresses()[data_set]
            Download(url, part, data_set, yes).run()
        else:
            url = str(expanded(source).resolve())
            copy(Path(url), part)
        inspect(part, url)
        finish(part, target, card, {"name": data_set, "url": url})
    except OSError as error:
        text = f"{target}: {error.strerror or error}; what has come is kept in {part.name}"
        raise RheoError(text, MACHINE) from error
    print(f"{target}: {size_text(target.stat().st_size)}, sha256 {read_card(card)['sha256']}")
    return 0


def listed() -> str:
    """Names of the data sets, a line for each robot or hand."""
    lines: dict[str, list[str]] = {}
    for name in addresses():
        lines.setdefault(name.partition("-")[0], []).append(name)
    return "\n".join(f"  {' '.join(names)}" for names in lines.values())


def already(target: Path, card: Path) -> int:
    """Answers for a file that is there: 0 when it still is what was fetched."""
    told = read_card(card).get("sha256")
    inspect(target, str(target), keep=True)
    if told is not None and told != sha256(target):
        text = f"{target} has changed since it was fetched ({card.name} has another SHA-256)"
        raise RheoError(f"{text}; delete both and fetch again", MACHINE)
    print(f"{target}: already there{'' if told is None else ', as it was fetched'}")
    return 0


def read_card(card: Path) -> dict[str, Any]:
    """What was noted beside a file; nothing where nothing readable was."""
    try:
        told = json.loads(card.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


class Download:
    """Brings `part` to the full size of what is at `url`, going on where an earlier one stopped."""

    def __init__(self, url: str, part: Path, name: str, yes: bool) -> None:
        if not url.startswith(("http://", "https://")):
            raise RheoError(f"{url}: only http and https addresses are fetched")
        self.url, self.part, self.state = url, part, part.with_suffix(".part.json")
        self.begins, self.what = FORMATS[Path(file_name(name)).suffix]
        self.elsewhere = f"get the file from elsewhere and run `rheo data fetch {name} --from FILE`"
        self.asked = yes or not (sys.stdin.isatty() and sys.stderr.isatty())
        if read_card(self.state).get("url") != url:
            part.unlink(missing_ok=True)

    @property
    def have(self) -> int:
        """Bytes that have come."""
        return self.part.stat().st_size if self.part.exists() else 0

    def run(self) -> None:
        """Connects until all is there. Raises RheoError after ATTEMPTS broken connections."""
        failure: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                self.attempt()
            except urllib.error.HTTPError as error:
                text = f"{self.url}: {error.code} {error.reason}; {self.elsewhere}"
                raise RheoError(text, MACHINE) from error
            except BROKEN_OFF as error:
                failure = error
            else:
                self.state.unlink(missing_ok=True)
                return
        reason = getattr(failure, "reason", failure)
        text = f"{self.url}: broke off after {self.have:,} bytes ({reason})"
        raise RheoError(f"{text}; run the same command to go on, or {self.elsewhere}", MACHINE)

    def attempt(self) -> None:
        """One connection. Raises one of BROKEN_OFF when it ends too early."""
        have = self.have
        request = urllib.request.Request(self.url, headers={"User-Agent": "rheo"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            version = read_card(self.state).get("version")
            if version:  # a file that changed meanwhile comes whole
                request.add_header("If-Range", version)
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:
                raise
            if total_of(error.headers.get("Content-Range")) != have:
                self.part.unlink()  # longer than the file: not a part of it
                self.attempt()
            return
        with response:
            answer = answered(response)
            if answer.offset not in (0, have):
                self.part.unlink()
                raise http.client.HTTPException(f"bytes {have}- were answered otherwise")
            self.refuse_page(response.headers.get("Content-Type"))
            self.announce(answer)
            self.receive(response, answer)

    def refuse_page(self, content_type: str | None) -> None:
        """Raises RheoError when a server answers with a page instead of the file."""
        if content_type and content_type.partition(";")[0].strip().lower() == "text/html":
            text = f"{self.url}: answered with an HTML page, not with the file"
            raise RheoError(f"{text}; {self.elsewhere}", MACHINE)

    def announce(self, answer: Answer) -> None:
        """Says how much will come, checks that the disk has room, asks where nobody has."""
        size = "of unknown size" if answer.total is None else size_text(answer.total)
        more = f", going on after {size_text(answer.offset)}" if answer.offset else ""
        folder = self.part.parent
        print(f"{self.url}: {size}, to {folder}{more}", flush=True)
        free = shutil.disk_usage(folder).free
        if answer.total is not None and answer.total - answer.offset > free:
            raise RheoError(
                f"{folder} has {size_text(free)} free; choose another --to DIR", MACHINE
            )
        if not self.asked and input("fetch it? [y/N] ").strip().lower() not in ("y", "yes"):
            raise RheoError("not fetched")
        self.asked = True

    def receive(self, response: Any, answer: Answer) -> None:
        """Writes what comes behind what is there. Raises IncompleteRead when it ends too early."""
        piece = response.read(PIECE)
        if not answer.offset and not piece.startswith(self.begins):
            text = f"{self.url}: what comes is not {self.what} ({piece[:16]!r})"
            raise RheoError(f"{text}; {self.elsewhere}", MACHINE)
        self.state.write_text(json.dumps({"url": self.url, "version": answer.version}))
        with self.part.open("r+b" if answer.offset else "wb") as file:
            file.seek(answer.offset)
            file.truncate()
            while piece:
                file.write(piece)
                piece = response.read(PIECE)
            have = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if answer.total is not None and have < answer.total:
            raise http.client.IncompleteRead(b"", answer.total - have)


def answered(response: Any) -> Answer:
    """What the headers tell."""
    headers, length = response.headers, response.headers.get("Content-Length")
    version = headers.get("ETag") or headers.get("Last-Modified")
    version = None if version and version.startswith("W/") else version
    if response.status == 206:
        told = headers.get("Content-Range", "")
        first = told.removeprefix("bytes ").partition("-")[0]
        return Answer(int(first) if first.isdecimal() else 0, total_of(told), version)
    return Answer(0, int(length) if length and length.isdecimal() else None, version)


def total_of(content_range: str | None) -> int | None:
    """The size of the whole in `bytes 5-9/10`."""
    total = (content_range or "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def copy(source: Path, part: Path) -> None:
    """Copies a file that was got in another way."""
    if not source.is_file():
        raise RheoError(f"--from {source}: no such file")
    print(f"{source}: {size_text(source.stat().st_size)}, to {part.parent}", flush=True)
    shutil.copyfile(source, part)


def inspect(file: Path, origin: str, keep: bool = False) -> None:
    """Raises RheoError, and removes the file, when it cannot be opened as recorded data."""
    try:
        head(str(file), Reading())
    except Refused as refused:
        if not keep:
            file.unlink(missing_ok=True)
        text = f"{origin}: {refused.faults[0].line()}"
        raise RheoError(text if keep else f"{text} (removed)", MACHINE) from refused


def finish(part: Path, target: Path, card: Path, told: dict[str, Any]) -> None:
    """Notes the SHA-256 and gives the file its name."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    told |= {"file": target.name, "bytes": part.stat().st_size, "sha256": sha256(part)}
    text = json.dumps(told | {"fetched": now}, indent=2) + "\n"
    put_text(card, text)
    os.replace(part, target)
