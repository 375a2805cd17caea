"""A frozen policy out of a file that another program exported."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

HOW = "export the module with torch.export.save (to .pt2), or torch.jit.script(module).save(...)"


class Exported(nn.Module):
    """act(obs [N, O], noise [N, T, Da]) -> actions [N, T, Da], read from a file.

    Files of `torch.export.save` (`.pt2`) and of TorchScript (`.pt`, `.ts`) are read; its program
    takes observations as the environment gives them and noises, for any number of rows, and returns
    actions in [-1, 1]. A program in float64 is given float64, and its actions are taken in the
    noise's precision. Raises ValueError for a file that is missing, cannot be read, does not take
    those inputs or answers with something else.

    Args:
        path: File of the program, written by torch.export.save (.pt2) or TorchScript (.pt, .ts):
            observations and noise to actions in [-1, 1].
    """

    def __init__(self, obs_dim: int, action_dim: int, horizon: int, *, path: str) -> None:
        super().__init__()
        file = Path(os.path.expanduser(path))
        if not file.is_file():
            raise ValueError(f"policy.path={path}: there is no such file")
        self.module = read(file, path)
        self.path, self.inputs = path, torch.float32
        for rows in (2, 3):
            obs, noise = torch.zeros(rows, obs_dim), torch.zeros(rows, horizon, action_dim)
            try:
                action = self.tried(obs, noise)
            except Exception as error:  # whatever the program raises
                raise ValueError(
                    f"policy.path={path}: does not take obs [{rows}, {obs_dim}] and noise "
                    f"{list(noise.shape)} (export it with any number of rows, and for this "
                    f"horizon): {first_line(error)}"
                ) from error
            self.refuse_other(action, noise)

    def tried(self, obs: Tensor, noise: Tensor) -> object:
        """The program's answer, in float64 where it does not take float32."""
        try:
            return self.module(obs.to(self.inputs), noise.to(self.inputs))
        except Exception:
            if self.inputs == torch.float64:
                raise
            try:
                answer = self.module(obs.double(), noise.double())
            except Exception:  # noqa: BLE001 - float32 is what is asked for: its error is told
                answer = None
            if answer is None:
                raise
            self.inputs = torch.float64
            return answer

    def refuse_other(self, action: object, noise: Tensor) -> None:
        """Raises ValueError for an answer that is no chunk of finite real actions."""
        if not isinstance(action, Tensor) or action.shape != noise.shape:
            found = list(action.shape) if isinstance(action, Tensor) else type(action).__name__
            problem = f"returned {found}"
        elif not action.is_floating_point():
            problem = f"returned numbers of type {action.dtype}"
        elif not bool(action.isfinite().all()):
            problem = "returned numbers that are not finite for observations and noises of 0"
        else:
            return
        raise ValueError(
            f"policy.path={self.path}: {problem}; for noise {list(noise.shape)} it has to return "
            f"finite real actions of that shape, in [-1, 1]"
        )

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions of noise's shape and precision."""
        return self.module(obs.to(self.inputs), noise.to(self.inputs)).to(noise.dtype)


def read(file: Path, path: str) -> nn.Module:
    """The program in a file. Raises ValueError that says what the file is instead."""
    other = kind(file)
    if other is not None:
        raise ValueError(f"policy.path={path}: {other}, not a program: {HOW}")
    try:
        if file.suffix == ".pt2" or exported(file):
            return torch.export.load(file).module()
        return torch.jit.load(file)
    except Exception as error:  # each format has its own
        raise ValueError(
            f"policy.path={path}: cannot be read as an exported program (torch.export.save to "
            f".pt2, or TorchScript): {first_line(error)}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def members(file: Path) -> set[str]:
    """Paths inside an archive, below its top folder; empty for a file that is none."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return set()


def exported(file: Path) -> bool:
    """Whether a file is an archive of torch.export, whatever it is called."""
    return any(name.startswith("models/") for name in members(file))


def kind(file: Path) -> str | None:
    """What a file holds that is often taken for a program; None for anything else.

    Nothing of it is executed: pickles are looked at as weights only.
    """
    endings = {".onnx": "an ONNX file", ".safetensors": "a file of weights alone (safetensors)"}
    if file.suffix in endings:
        return endings[file.suffix]
    inside = members(file)
    if "data.pkl" not in inside or any(name.startswith("code/") for name in inside):
        return None
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - whatever the pickle needs
        return "a pickled Python object (torch.save of a whole module or optimiser)"
    if isinstance(held, Tensor):
        return "a tensor (torch.save)"
    if isinstance(held, Mapping) and held and all(isinstance(x, Tensor) for x in held.values()):
        return f"a state_dict, the weights alone of {len(held)} tensors"
    return f"a {type(held).__name__} of weights and settings (torch.save), perhaps a checkpoint"
