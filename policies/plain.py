"""A plain Gaussian actor from arrays: what other libraries' trained policies come down to."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = {"tanh": torch.tanh, "relu": F.relu}
OUTPUT = {
    "tanh": torch.tanh,
    "clip": lambda x: x.clamp(-1.0, 1.0),
    "identity": lambda x: x.clamp(-1.0, 1.0),
}
LOG_STD = (-20.0, 2.0)  # where SAC implementations clamp a state-dependent deviation
PAIRS = {"obs_mean": "obs_var", "in_shift": "in_scale", "out_shift": "out_scale"}


class PlainActor(nn.Module):
    """An MLP actor a = out(out_scale * net((obs - in_shift) / in_scale) + out_shift).

    arrays: `w0, b0, w1, b1, ...` [out, in] and [out]; `hidden_act` tanh or relu; `out_act` tanh,
    clip or identity (which the box clips too); optionally `obs_mean, obs_var, obs_eps, obs_clip`
    or `in_shift, in_scale` (observations), `out_shift, out_scale` (actions before `out_act`), and
    `log_std` [Da] or `log_std_w, log_std_b` (from the last hidden layer). An actor that reads more
    numbers than the environment gives sees zeros in their place. name: for messages.

    Raises ValueError naming the array that is missing or does not fit.
    """

    def __init__(self, arrays: Mapping[str, Any], name: str = "actor") -> None:
        super().__init__()
        self.name = name
        self.depth = sum(1 for i in range(len(arrays)) if f"w{i}" in arrays)
        needed = ["w0", *(f"b{i}" for i in range(self.depth)), "hidden_act", "out_act"]
        needed += [second for first, second in PAIRS.items() if first in arrays]
        needed += ["log_std_b"] if "log_std_w" in arrays else []
        lacking = [key for key in needed if key not in arrays]
        if lacking:
            raise ValueError(f"{name}: no array {lacking[0]!r}; it holds {', '.join(arrays)}")
        self.hidden = self._choice(arrays, "hidden_act", HIDDEN)
        self.out = self._choice(arrays, "out_act", OUTPUT)
        self.obs_clip = float(arrays["obs_clip"]) if "obs_clip" in arrays else None
        for key, value in arrays.items():
            if np.asarray(value).dtype.kind == "f" and np.asarray(value).ndim:
                self.register_buffer(key, torch.tensor(np.asarray(value), dtype=torch.float32))
        if "obs_mean" in arrays:
            eps = float(arrays.get("obs_eps", 1e-8))
            self.register_buffer("in_shift", self.get_buffer("obs_mean"))
            self.register_buffer("in_scale", (self.get_buffer("obs_var") + eps).sqrt())
        self._check_sizes()

    def _choice(self, arrays: Mapping[str, Any], key: str, known: dict[str, Any]) -> Any:
        value = str(arrays[key])
        if value not in known:
            raise ValueError(f"{self.name}: {key}={value!r} must be one of {', '.join(known)}")
        return known[value]

    def _check_sizes(self) -> None:
        width = self.obs_dim
        for i in range(self.depth):
            weight, bias = self.get_buffer(f"w{i}"), self.get_buffer(f"b{i}")
            if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"{self.name}: w{i} {tuple(weight.shape)} and b{i} {tuple(bias.shape)} do not "
                    f"follow a layer of {width}; weights are [out, in]"
                )
            width = len(bias)

    @property
    def obs_dim(self) -> int:
        """Numbers that the actor reads."""
        return self.get_buffer("w0").shape[1]

    @property
    def action_dim(self) -> int:
        """Numbers that it gives."""
        return self.get_buffer(f"b{self.depth - 1}").shape[0]

    @property
    def stochastic(self) -> bool:
        """Whether the actor has a distribution of its own."""
        return any(hasattr(self, key) for key in ("log_std", "log_std_w"))

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions [N, Da] in [-1, 1] for obs [N, Do]; `noise` [N, Da] samples its distribution."""
        h = F.pad(obs, (0, self.obs_dim - obs.shape[1]))
        if hasattr(self, "in_shift"):
            h = (h - self.get_buffer("in_shift")) / self.get_buffer("in_scale")
        if self.obs_clip is not None:
            h = h.clamp(-self.obs_clip, self.obs_clip)
        for i in range(self.depth - 1):
            h = self.hidden(F.linear(h, self.get_buffer(f"w{i}"), self.get_buffer(f"b{i}")))
        last = self.depth - 1
        mean = F.linear(h, self.get_buffer(f"w{last}"), self.get_buffer(f"b{last}"))
        if hasattr(self, "out_shift"):
            mean = mean * self.get_buffer("out_scale") + self.get_buffer("out_shift")
        if noise is not None:
            mean = mean + noise * self._std(h)
        return self.out(mean)

    def _std(self, h: Tensor) -> Tensor:
        if hasattr(self, "log_std_w"):
            value = F.linear(h, self.get_buffer("log_std_w"), self.get_buffer("log_std_b"))
            return value.clamp(*LOG_STD).exp()
        if not hasattr(self, "log_std"):
            raise ValueError(f"{self.name}: has no log_std, so it cannot be sampled; set noise=")
        return self.get_buffer("log_std").exp()
