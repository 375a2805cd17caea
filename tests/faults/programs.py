"""Exported programs from somebody else: code, so none is called until the user names it."""

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from children import Ended, rheo
from hostile import MIB, SECONDS, Make, rewritten
from torch import nn
from trials import Promise, Random, Trial, each

TRAIN = (
    *("train", "algo=dsrl_na", "policy=exported", "env=inverted_pendulum", "env.num_envs=2"),
    *("horizon=2", "steps=40", "source.warmup=20", "source.batch_size=4", "episodes=1", "name=r"),
    *(f"{key}.obs_norm.kind=none" for key in ("critic", "algo.actor", "algo.noise_critic")),
)


class Hand(nn.Module):
    """tanh(W obs + noise)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, obs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(obs)[:, None, :] + noise)


class Writes(nn.Module):
    """A program that writes a file while it acts."""

    path: str

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, obs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        out = torch.from_file(self.path, True, 8)
        out.fill_(1.0)
        return torch.tanh(noise + obs[:, :1, None] + 0.0 * out.sum())


class Endless(nn.Module):
    """A program that never answers."""

    def forward(self, obs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        while bool((noise == noise).all()):
            noise = noise * 1.0
        return noise


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:

        return os.system, (f"touch {self.canary}",)


def good(place: Path) -> Path:
    """A program that does no harm."""
    file = place / "hand.pt2"
    given = torch.zeros(2, 4), torch.zeros(2, 2, 1)
    shape = {0: torch.export.Dim("rows")}
    torch.export.save(torch.export.export(Hand(), given, dynamic_shapes=(shape, shape)), file)
    return file


def replaced(place: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The good program, of whose archive a part was changed."""
    file = place / "evil.pt2"
    with zipfile.ZipFile(good(place)) as source, zipfile.ZipFile(file, "w") as out:
        for name in source.namelist():
            out.writestr(name, change(name, source.read(name)))
    return file


def samples(place: Path) -> Path:
    """Sample inputs that are a pickle of a command."""
    torch.save(Evil(place / "CANARY"), place / "x.pt")
    raw = (place / "x.pt").read_bytes()
    return replaced(place, lambda name, old: raw if "sample_inputs" in name else old)


def weights(place: Path) -> Path:
    """A weight that is said to be a pickle."""
    torch.save(Evil(place / "CANARY"), place / "x.pt")
    raw = (place / "x.pt").read_bytes()

    def change(name: str, old: bytes) -> bytes:
        if name.endswith("_config.json"):
            return old.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                b'"use_pickle":false', b'"use_pickle":true'
            )
        return raw if "data/weights/" in name else old

    return replaced(place, change)


def expression(place: Path) -> Path:
    """A size that is a command."""
    evil = f"__import__('os').system('touch {place / 'CANARY'}')".encode()

    def change(name: str, old: bytes) -> bytes:
        if not name.endswith(".json") or b'"expr_str"' not in old:
            return old
        head, _, rest = old.partition(b'"expr_str"')
        before, _, after = rest.partition(b'"')
        return head + b'"expr_str"' + before + b'"' + evil + b'"' + after.partition(b'"')[2]

    return replaced(place, change)


def script(module: Callable[[Path], nn.Module]) -> Callable[[Path], Path]:
    """A TorchScript file."""

    def make(place: Path) -> Path:
        torch.jit.script(module(place)).save(str(place / "evil.pt"))
        return place / "evil.pt"

    return make


def typed(make: Callable[[Path], Path]) -> Make:
    """A run on a file, whose path is typed."""
    return lambda place: [*TRAIN, f"policy.path={make(place)}"]


def sent(verb: str) -> Make:
    """A run folder that calls a file, sent by somebody."""

    def make(place: Path) -> list[str]:
        file = str(samples(place))

        def change(config: dict[str, Any]) -> None:
            config["policy"] = {"_target_": "rheo.policies.exported.Exported", "path": file}

        longer = ["steps=220"] if verb == "resume" else ["episodes=1"]
        return [verb, str(rewritten(place, change)), *longer]

    return make


FILES = {
    "samples": typed(samples),
    "weights": typed(weights),
    "expression": typed(expression),
    "TorchScript that writes": typed(script(lambda place: Writes(str(place / "CANARY")))),
    "TorchScript that never ends": typed(script(lambda place: Endless())),
    **{f"sent run folder, {verb}": sent(verb) for verb in ("eval", "resume")},
    "harmless": typed(good),
}


def trial(name: str) -> Trial:
    """A command that would call a program."""

    def make(place: Path) -> list[str]:
        command = FILES[name](place)
        (place / "CANARY").unlink(missing_ok=True)  # by whoever looked at it while it was made
        return command

    def harm(place: Path, command: list[str]) -> Ended:
        return rheo(place, command, within=SECONDS, memory=4 * MIB)

    def judge(place: Path, end: Ended) -> str:
        if (place / "CANARY").exists():
            return "its code ran"
        wanted = (0,) if name == "harmless" else (2, 3)
        wrong = f"ended with {end.code}: {end.text[-300:]}" if end.code not in wanted else ""
        return end.crashed() or wrong

    return Trial(name, make, harm, judge)


def drawn(count: int, draw: Random) -> Iterator[Trial]:
    """All of them, or as many as asked."""
    yield from each(FILES, trial)(count, draw)


PROMISES = [
    Promise("hostile", "programs that do harm are refused, others run where they were named", drawn)
]
