"""What `rheo serve` was asked."""

import ipaddress
import os
from collections.abc import Sequence
from typing import NamedTuple

from rheo.envs.packages import importable, lacking
from rheo.envs.paths import expanded
from rheo.errors import RheoError

from ..store.where import existing
from .exporting import ENDINGS
from .top import EVAL_SEED
from .words import Option, count, divide, natural, one_of, one_run, positive, switch, values

PORT, LAST_PORT = 8570, 65535
MEBIBYTE = 1 << 20
SHORTEST = 16  # characters of a token
TOKEN = "RHEO_TOKEN"
NEEDED = ("websockets", "safetensors")
USAGE = {
    "serve": f"""\
usage: rheo serve RUN|PROGRAM.pt2|PROGRAM.onnx
                      [port={PORT}] [host=127.0.0.1] [token=FILE] [seed={EVAL_SEED}]
                      [hold=last|neutral] [clients=8] [rows=64] [frame=16] [delay=0]
                      [check=true [hz=50]]
       answers observations with actions, one session a connection: rheo.Client, or any program
       that speaks WebSocket (docs/serve.md); Ctrl-C or SIGTERM ends it
options: token=FILE  whose first line a client has to name; or the variable {TOKEN}. Every host
                     but this machine itself needs one
         hold=WORD   what a client does that has no plan in time: repeat the last action, or 0
         clients=N   connections at once; rows=N: observations of one; frame=N: MiB of a message
         delay=MS    that every answer is held back, to try a robot's loop with
         check=true  serves itself a moment, prints milliseconds and missed steps, and ends"""
}


class Serving(NamedTuple):
    """A run or a program, where it is served, and to how many."""

    run: str
    flagged: list[str]  # --config-dir
    host: str
    port: int  # 0: a free one
    token: str | None  # itself
    seed: int
    hold: str | None
    clients: int
    rows: int
    frame: float  # MiB
    delay: float  # milliseconds
    check: bool
    hz: float


def port(text: str) -> int:
    """Reads a port."""
    if natural(text) > LAST_PORT:
        raise ValueError(f"a port is needed, 0 to {LAST_PORT}")
    return int(text)


def milliseconds(text: str) -> float:
    """Reads a time that may be 0."""
    return 0.0 if text == "0" else positive(text)


SERVING = {
    **{"host": Option("127.0.0.1"), "port": Option(PORT, port), "token": Option(None)},
    **{"seed": Option(EVAL_SEED, natural), "hold": Option(None, one_of("last", "neutral"))},
    **{"clients": Option(8, count), "rows": Option(64, count), "frame": Option(16.0, positive)},
    **{"delay": Option(0.0, milliseconds), "check": Option(False, switch)},
    "hz": Option(50.0, positive),
}


def serve(argv: Sequence[str]) -> Serving:
    """`rheo serve`: the run, and to whom it is served. Raises RheoError."""
    words = divide(argv, SERVING)
    found = values(words.options, SERVING, f"\n{USAGE['serve']}")
    name = one_run(words, USAGE["serve"])
    if not is_program(name):
        existing(name)
    elif not expanded(name).is_file():
        raise RheoError(f"{name}: there is no such file; rheo export RUN makes one")
    missing = [package for package in NEEDED if not importable(package)]
    if missing:
        raise RheoError(lacking("rheo serve", "'rheo-rl[serve]'"))
    found["token"] = token(found["token"])
    if found["token"] is None and not is_loopback(found["host"]):
        raise RheoError(
            f"host={found['host']}: other machines could move the robot; give a token "
            f"(token=FILE, or the variable {TOKEN}), or leave host= out and use an ssh tunnel"
        )
    return Serving(name, words.flagged, **found)


def is_program(name: str) -> bool:
    """Whether a name is that of an exported program, not of a run."""
    return expanded(name).suffix in ENDINGS


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def token(file: str | None) -> str | None:
    """The word a client has to name; None: none. Raises RheoError for one that can be guessed."""
    if file is None:
        where, text = TOKEN, os.environ.get(TOKEN)
        if text is None:
            return None
    else:
        where = f"token={file}"
        try:
            text = (expanded(file).read_text(encoding="ascii").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise RheoError(f"{where}: cannot be read: {error}") from error
    text = text.strip()
    if len(text) < SHORTEST or not text.isascii() or not text.isprintable() or " " in text:
        raise RheoError(
            f"{where}: a token is one word of {SHORTEST} or more letters and digits; "
            "make one with: openssl rand -hex 16"
        )
    return text
