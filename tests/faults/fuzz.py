"""Thousands of inputs that are nearly right, in this process: an answer, no traceback, in a second.

Configuration (overrides and config.yaml), checkpoints whose digests are right, rows, run.json, and
frames to the server. Recorded data are of fuzz_data.py.
"""

import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from inside import at, said, wrong_with
from kinds import straight, words
from mutate import ODD, bent, odd
from trials import Promise, Random, Trial

from rheo.errors import RheoError
from rheo.scripts.config import compose
from rheo.scripts.session import Session
from rheo.scripts.store import checkpoint
from rheo.scripts.store.journal import Journal
from rheo.scripts.store.run import Run
from rheo.scripts.store.tree import Broken

KIND = "off-policy"
BLOCK = 500  # inputs of recorded data between two of which samples are made anew
READ = (RheoError, Broken)
Try = Callable[[Random, Path], str]  # one input: what is wrong, or nothing


def shown(value: Any) -> str:
    """A value as it is typed."""
    text = json.dumps(value) if not isinstance(value, str) else value
    return text.replace("\x00", "")


def bytes_of(text: str) -> bytes:
    """A text's bytes, halves of characters too."""
    return text.encode(errors="surrogatepass")


def overrides(draw: Random, place: Path) -> str:
    """A command line of which words have other keys, values or brackets."""
    typed = list(words(KIND))
    for _ in range(draw.choice((1, 1, 2, 3))):
        i = draw.randrange(len(typed))
        key, _, value = typed[i].partition("=")
        typed[i] = draw.choice(
            (
                f"{key}={shown(draw.choice(ODD))}",
                bent(bytes_of(typed[i]), draw).decode(errors="surrogateescape").replace("\x00", ""),
                f"{draw.choice(('+', '~', '++', ''))}{key}.{value}={value}",
                f"{key}={'[' * draw.randrange(200)}{value}",
            )
        )
    return wrong_with(lambda: compose.asked(typed), READ)


def config_yaml(draw: Random, place: Path) -> str:
    """A run's configuration with other values, or other bytes."""
    raw = (straight(KIND) / "config.yaml").read_bytes()
    if draw.random() < 0.5:
        raw = bent(raw, draw)
    else:
        raw = yaml.safe_dump(odd(yaml.safe_load(raw), draw), allow_unicode=True).encode(
            errors="surrogatepass"
        )
    (place / "config.yaml").write_bytes(raw)
    return wrong_with(lambda: compose.load(place, to_train=draw.random() < 0.5), READ)


def journal(draw: Random, place: Path) -> str:
    """Rows that are cut, of other types, nested, or no rows."""
    raw = (straight(KIND) / "metrics.jsonl").read_bytes()
    if draw.random() < 0.5:
        raw = bent(raw, draw)
    else:
        rows = [json.loads(line) for line in raw.splitlines()]
        raw = b"\n".join(json.dumps(one).encode(errors="surrogatepass") for one in odd(rows, draw))
    file = place / "metrics.jsonl"
    file.write_bytes(raw + b"\n")

    def read() -> None:
        log = Journal(file)
        log.rows()
        log.rewind(100)
        log.close("")

    return wrong_with(read, READ)


def run_json(draw: Random, place: Path) -> str:
    """A run.json of other values: whoever asks what a run is goes on without it."""
    file = place / "run" / "run.json"
    shutil.copytree(straight(KIND), file.parent, ignore=lambda *_: ["ckpt", "events", "eval"])
    tree = odd(json.loads(file.read_bytes()), draw)
    raw = bent(file.read_bytes(), draw) if draw.random() < 0.5 else json.dumps(tree).encode()
    file.write_bytes(raw)
    return wrong_with(lambda: Run.open(str(file.parent)).about(), ())


def checkpoint_files(draw: Random, place: Path) -> str:
    """A checkpoint of which a file has other bytes, or whose state is another, digests right."""
    target = place / "000000000200"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(sorted((straight(KIND) / "ckpt").glob("0*"))[-1], target)
    file = draw.choice(sorted(f for f in target.iterdir() if f.name != "manifest.json"))
    raw = file.read_bytes()
    if file.suffix == ".json" and draw.random() < 0.7:
        raw = json.dumps(odd(json.loads(raw), draw)).encode()
    else:
        raw = bent(raw, draw)
    sealed(target, file.name, raw, draw)
    return wrong_with(lambda: checkpoint.read(target), READ)


def sealed(target: Path, name: str, raw: bytes, draw: Random) -> None:
    """Puts a file into a checkpoint with its digest in the manifest, which may be odd itself."""
    manifest = json.loads((target / "manifest.json").read_bytes())
    manifest.pop("sha256")
    manifest["files"][name] = checkpoint.write_bytes(target / name, [raw])
    if draw.random() < 0.3:
        manifest = odd(manifest, draw)
    with suppress(ValueError):  # not a number of JSON
        (target / "manifest.json").write_bytes(checkpoint.sealed(manifest))


@cache
def trees() -> dict[str, Any]:
    """The state of the undisturbed run."""
    tree = Run.open(str(straight(KIND))).load()
    assert tree is not None
    return tree


def forged(draw: Random, place: Path) -> str:
    """A whole state with other values, saved with right digests and resumed for a few steps."""
    run = place / "runs" / "r"
    shutil.rmtree(place / "runs", ignore_errors=True)
    shutil.copytree(straight(KIND), run, ignore=lambda *_: ["ckpt", "events"])
    tree = odd(trees(), draw, (*ODD, torch.zeros(3), torch.full((2, 2), torch.nan), np.zeros(2)))
    try:
        checkpoint.write(run / "ckpt", 200, tree, 2)
    except Exception:  # noqa: BLE001 - what cannot be saved cannot be sent
        return ""
    end = said(place, ["resume", "r", "steps=204"])
    return f"{end.code}: {end.crash}" if end.crash else ""


@cache
def session() -> Session:
    """What one connection of the server is answered by."""
    from rheo.scripts.policy import Policy

    policy = Policy(str(straight(KIND)), seed=0)
    about = {"plan": {"steps": policy.usable, "executed": policy.execute}}
    return Session(policy, about, 0, 64)


def frame(draw: Random, place: Path) -> str:
    """A frame with other words, arrays or bytes. A fault of the server itself is told in it."""
    from rheo.scripts.client import packed, unpacked

    kinds = draw.choice(("f4", "f8", "i8", "u1", "?"))
    shape = draw.choice(((4,), (1, 4), (0, 4), (3, 4), (65, 4), (), (2, 2, 2), (5,)))
    values = np.random.default_rng(draw.randrange(2**32)).normal(size=shape).astype(kinds)
    does = draw.choice(("act", "see", "chunk", "reset", "begin", "", "forget"))
    keys = draw.choice(("seed", "row", "execute", "frozen", "id", "do"))
    told = {"do": does, "id": "1", keys: str(draw.choice(ODD)).encode(errors="replace").decode()}
    named = {draw.choice(("obs", "obs.flat", "rows", "left", "")): values, "obs": values}
    content: Any = packed(told, named)
    content = bent(content, draw) if draw.random() < 0.6 else content
    content = "text" if draw.random() < 0.01 else content
    found: list[str] = []

    def ask() -> None:
        answer = session().answer(content)
        if answer is not None and unpacked(answer)[0].get("code") == "server":
            found.append(f"answered by a fault of its own: {unpacked(answer)[0]['error']}")

    return wrong_with(ask, ()) or "".join(found)


def trials(one: Try) -> Callable[..., Iterator[Trial]]:
    """Inputs, each from a seed of its own."""

    def trial(seed: int) -> Trial:
        def harm(place: Path, _: None) -> str:
            with at(place):
                return one(Random(seed), place)

        return Trial(f"input {seed}", lambda place: None, harm, lambda place, wrong: wrong)

    def drawn(count: int, draw: Random) -> Iterator[Trial]:
        return (trial(draw.randrange(2**31)) for _ in range(count))

    return drawn


def surviving(wrong: Callable[[range], dict[int, str]], numbers: range) -> dict[int, str]:
    """What is wrong with some inputs, found in children: one may end the process that reads it."""
    ours, its = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(its, "w") as answer:
                json.dump(wrong(numbers), answer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(its)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended == 0:
        return {int(number): text for number, text in json.loads(said).items()}
    if len(numbers) == 1:
        return {numbers[0]: f"the process that reads it ended with {ended}"}
    half = len(numbers) // 2
    return surviving(wrong, numbers[:half]) | surviving(wrong, numbers[half:])


def of_data(count: int, draw: Random) -> Iterator[Trial]:
    """Recorded data, which have a module of their own; it makes its samples once for a block."""
    seed = draw.randrange(2**31)

    @lru_cache(maxsize=1)
    def found(block: int) -> dict[int, str]:
        numbers = range(block * BLOCK, min((block + 1) * BLOCK, count))
        wrong = importlib.import_module("fuzz_data").wrong
        return surviving(lambda some: wrong(some, seed), numbers)

    def trial(number: int) -> Trial:
        def harm(place: Path, _: None) -> str:
            return found(number // BLOCK).get(number, "")

        return Trial(f"input {number} of seed {seed}", lambda place: None, harm, judged)

    def judged(place: Path, wrong: str) -> str:
        return wrong

    return map(trial, range(count))


def lack() -> str:
    """Why recorded data are not tried."""
    return "" if importlib.util.find_spec("fuzz_data") else "no module fuzz_data"


KINDS: dict[str, tuple[Try, float]] = {  # what is read -> an input of it, and its share of count
    "overrides": (overrides, 20),
    "config.yaml": (config_yaml, 40),
    "metrics.jsonl": (journal, 100),
    "run.json": (run_json, 40),
    "files of a checkpoint": (checkpoint_files, 60),
    "states with right digests": (forged, 1),
    "frames to the server": (frame, 60),
}
PROMISES = [
    *(
        Promise("fuzz", f"nearly right: {name}", trials(one), share)
        for name, (one, share) in KINDS.items()
    ),
    Promise("fuzz", "nearly right: recorded data", of_data, 100, lack=lack),
]
