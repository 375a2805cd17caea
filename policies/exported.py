"""A frozen policy out of a file that another program exported."""

from pathlib import Path

import torch
from torch import Tensor, nn


class Exported(nn.Module):
    """act(obs [N, O], noise [N, T, Da]) -> actions [N, T, Da], read from `path`.

    Files of `torch.export.save` (`.pt2`) and of TorchScript (`.pt`, `.ts`) are read; its program
    takes observations as the environment gives them and noises, for any number of rows, and
    returns actions in [-1, 1]. Raises ValueError for a file that is missing, cannot be read or
    does not take those inputs.
    """

    def __init__(self, obs_dim: int, action_dim: int, horizon: int, *, path: str) -> None:
        super().__init__()
        file = Path(path).expanduser()
        if not file.is_file():
            raise ValueError(f"policy.path={path}: there is no such file")
        try:
            program = file.suffix == ".pt2"
            self.module = torch.export.load(file).module() if program else torch.jit.load(file)
        except Exception as error:  # each format has its own
            raise ValueError(
                f"policy.path={path}: cannot be read as an exported program (torch.export.save to "
                f".pt2, or TorchScript): {str(error).splitlines()[0]}"
            ) from error
        for rows in (2, 3):
            noise = torch.zeros(rows, horizon, action_dim)
            try:
                self.act(torch.zeros(rows, obs_dim), noise)
            except Exception as error:  # whatever the program raises
                raise ValueError(
                    f"policy.path={path}: does not take obs [{rows}, {obs_dim}] and noise "
                    f"{list(noise.shape)} (export it with any number of rows, and for this "
                    f"horizon): {str(error).strip().splitlines()[0]}"
                ) from error

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions of noise's shape."""
        return self.module(obs, noise)
