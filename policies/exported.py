"""A frozen policy out of a file that another program exported."""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from .programs import prepared
from .rehearsal import rehearse


class Exported(nn.Module):
    """act(obs [N, O], noise [N, T, Da]) -> actions [N, T, Da], read from a file.

    Files of ONNX (`.onnx`), of `torch.export.save` (`.pt2`) and of TorchScript (`.pt`, `.ts`) are
    read; ONNX is no code, the others are, and are looked into before they are read (`vetting`).
    The program takes observations as the environment gives them and noises, for any number of rows,
    and returns actions in [-1, 1]. One in float64 is given float64, and its actions are taken in
    the noise's precision. It is called for the first time in a process of its own, with a limit.
    Raises ValueError for a file that is missing, is another one, cannot be read, does not take
    those inputs or answers with something else.

    Args:
        path: File of the program, of ONNX (.onnx), torch.export.save (.pt2) or TorchScript (.pt,
            .ts): observations and noise to actions in [-1, 1].
        sha256: Digest of the file, by which another one of that name is refused; null takes that of
            the file as it is.
    """

    def __init__(
        self, obs_dim: int, action_dim: int, horizon: int, *, path: str, sha256: str | None = None
    ) -> None:
        super().__init__()
        file = Path(os.path.expanduser(path))
        if not file.is_file():
            raise ValueError(f"policy.path={path}: there is no such file")
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if sha256 not in (None, digest):
            raise ValueError(
                f"policy.path={path}: another program than the run's (sha256 {digest}, and the "
                f"run's is {sha256})"
            )
        self.path, sizes = path, (obs_dim, action_dim, horizon)
        try:
            read = prepared(data, file.suffix)
            wide = rehearse(data, file.suffix, sizes)
            self.inputs = torch.float64 if wide else torch.float32
            self.module = read()
        except ValueError as error:
            raise ValueError(f"policy.path={path}: {error}") from error

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions of noise's shape and precision."""
        return self.module(obs.to(self.inputs), noise.to(self.inputs)).to(noise.dtype)
