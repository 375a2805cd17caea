"""One writer per run folder."""

import errno
import fcntl
import json
import logging
import os
import platform
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rheo.errors import MACHINE, RheoError, command

logger = logging.getLogger("rheo")


class Lock:
    """The lock file of a run folder: a system lock, with pid, host and start time written in it.

    The system drops its lock when the process dies, however it dies, so a stale file is
    recognised without guessing from the pid. On a shared disk the system lock may not reach other
    machines: a file that names another host is honoured. A link is not followed: it would let
    whoever made the folder choose the file that is written.

    Raises RheoError when another process holds it, OSError when the folder cannot be written.
    """

    NAME = "lock"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.NAME
        self.owner = os.getpid()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.handle = os.open(self.path, flags, 0o644)
        try:
            self.refuse_odd()
            self.acquire()
        except BaseException:
            os.close(self.handle)
            raise

    def refuse_odd(self) -> None:
        """Raises RheoError for a lock that is no file of this folder alone."""
        found = os.fstat(self.handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise RheoError(f"{self.path}: is no file of its own (a pipe or a link); remove it")

    def acquire(self) -> None:
        """Takes the system lock and signs the file."""
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise self.taken(self.holder()) from error
        if not self.is_current():  # its holder removed the file between our open and our lock
            raise self.taken({})
        holder = self.holder()
        if holder.get("host", platform.node()) != platform.node():
            raise self.taken(holder)
        if holder:
            text = "%s: the process %s that held this run is gone; where its environment ended it, "
            text += "env.workers=1 hosts that in a process of its own"
            logger.info(text, self.path, holder["pid"])
        self.sign()

    def is_current(self) -> bool:
        """Whether the file we locked is still the one in the folder."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(os.fstat(self.handle), there)

    def refuse_lost(self) -> None:
        """Raises RheoError (code 3) once the file was removed or replaced: another process may
        write here now.
        """
        if self.handle >= 0 and not self.is_current():
            raise RheoError(
                f"{self.path}: was removed or replaced while this process was writing here; it "
                "stops and writes nothing more, since another one may have begun to. When none "
                f"has: {command('resume', self.path.parent)}",
                MACHINE,
            )

    def holder(self) -> dict[str, Any]:
        """What the file says; empty when it says nothing readable."""
        try:
            holder = json.loads(os.pread(self.handle, 4096, 0))
            return {key: holder[key] for key in ("pid", "host", "started")}
        except (ValueError, KeyError, TypeError):
            return {}

    def sign(self) -> None:
        """Writes this process into the file."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        text = json.dumps({"pid": self.owner, "host": platform.node(), "started": now})
        os.ftruncate(self.handle, 0)
        os.pwrite(self.handle, text.encode(), 0)

    def taken(self, holder: dict[str, Any]) -> RheoError:
        """The message for a run in use."""
        folder = self.path.parent
        if not holder:
            return RheoError(f"{folder} is in use by another process; choose another name=")
        who = f"process {holder['pid']} on {holder['host']} since {holder['started']}"
        remedy = "choose another name=, or stop that process"
        if holder["host"] != platform.node():
            remedy += f" (when it is gone, remove {self.path})"
        return RheoError(f"{folder} is in use by {who}; {remedy}")

    def release(self) -> None:
        """Removes the file and drops the lock; a forked child leaves both alone.

        A file that took its place is another process's.
        """
        if self.handle < 0 or os.getpid() != self.owner:
            return
        if self.is_current():
            self.path.unlink(missing_ok=True)
        os.close(self.handle)
        self.handle = -1
