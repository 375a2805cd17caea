"""An exported program (`rheo export`) in the place of a run's policy, as its contract says."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rheo.algos.contract import Algorithm
from rheo.envs.noise import TILE
from rheo.envs.paths import expanded
from rheo.envs.pixels import pixels, unpacked
from rheo.errors import RheoError
from rheo.policies.programs import opened

from .episodes import Episodes
from .export import VERSION

MADE = "make it with: rheo export RUN"


class Decision:
    """A program's plans in [-1, 1]; what it draws comes from the generator that is handed in."""

    ended = Algorithm.ended  # it remembers nothing

    def __init__(self, program: Any, contract: Mapping[str, Any], half: Any, middle: Any) -> None:
        self.program, self.inputs = program, contract["inputs"]
        self.images: dict[str, list[int]] = contract["observation"]["images"]
        self.steps, self.generator = contract["observation"]["steps"], torch.Generator()
        unit = contract["output"]["units"] == "unit"
        self.half, self.middle = (None, None) if unit else (half, middle)

    def deployed(self) -> None:
        """No policy whose samples could be continued."""

    @torch.no_grad()
    def deploy(self, obs: Tensor, generator: Any, /) -> Tensor:
        """Plans [N, T, Da] for histories [N, To Do], in which images are packed."""
        whole = obs.unflatten(1, (self.steps, -1))
        state = whole.shape[2] - pixels(self.images)
        given = [self.given(one, whole, state, generator) for one in self.inputs]
        if self.images:  # one observation a call
            rows = [self.program(*(each[i : i + 1] for each in given)) for i in range(len(obs))]
            plan = torch.cat(rows)
        else:
            plan = self.program(*given)
        if self.half is None:
            return plan
        return (plan - torch.as_tensor(self.middle).float()) / torch.as_tensor(self.half).float()

    def given(self, one: Mapping[str, Any], whole: Tensor, state: int, generator: Any) -> Tensor:
        """An input of the program, [N, ...]."""
        name, shape = one["name"], (len(whole), *one["shape"][1:])
        if name == "obs":
            return whole[..., :state].flatten(1)
        if name in self.images:
            before = list(self.images)[: list(self.images).index(name)]
            start = state + pixels({key: self.images[key] for key in before})
            height, width = self.images[name]
            numbers = whole[..., start : start + height * width].numpy()
            return torch.from_numpy(unpacked(numbers, height))
        return generator.exponential(shape) if name == "waiting" else generator.normal(shape)


class Programmed(Episodes):
    """Episodes under an exported program. Raises RheoError for a file that is none, or another one
    than its contract describes."""

    def __init__(self, file: str, seed: int) -> None:
        path = expanded(file)
        data = path.read_bytes()
        self.contract = contract = contract_of(path, hashlib.sha256(data).hexdigest())
        shown, output = contract["observation"], contract["output"]
        low, high = np.array(output["low"], float), np.array(output["high"], float)
        self.action_low, self.action_high = low, high
        self.images = {key: list(size) for key, size in shown["images"].items()}
        wide = {key: height * width for key, (height, width) in self.images.items()}
        self.obs_parts, self.steps = {**shown["parts"], **wide}, shown["steps"]
        plan = contract["plan"]
        self.horizon, self.execute = plan["steps"], plan["executed"]
        self.usable = plan.get("learned", self.execute)
        self.tile = 1 if self.images else TILE
        self.seed, self.origin = seed, str(path)
        try:
            program = opened(data, path.suffix)
        except ValueError as error:
            raise RheoError(f"{path}: {error}") from error
        self.algo = Decision(program, contract, (high - low) / 2, (high + low) / 2)
        self.deploy = self.algo.deploy
        self._begin(0)


def contract_of(path: Path, content: str) -> dict[str, Any]:
    """The contract beside a program. Raises RheoError where it is not that of this content, by its
    SHA-256.
    """
    told = path.with_name(f"{path.name}.json")
    if not told.is_file():
        raise RheoError(f"{path}: its contract {told} is missing; {MADE}")
    try:
        contract = json.loads(told.read_text())
        version, digest = contract["contract"], contract["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RheoError(f"{told}: no contract of a program ({error!r}); {MADE}") from error
    if version != VERSION:
        raise RheoError(f"{told}: a contract of version {version}, and this is {VERSION}; {MADE}")
    if digest != content:
        raise RheoError(f"{path}: not the program that {told} describes; {MADE}")
    return contract
