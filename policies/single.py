"""The Euler loop of an MLP policy for a single row on the CPU, in numpy.

At batch 1 a torch operation costs more than its arithmetic; numpy's calls are several times
lighter. The arrays here are views of the parameters, so there is nothing to refresh after an
update. `FlowPolicy.act` takes this way by itself where `Single.serves` it, and the result equals
the plain way up to the rounding of a matrix product (1e-6).
"""

import numpy as np
import torch
from torch import Tensor, nn

from .nets import MLP
from .paths import Linear

# scalars of the arrays' type: a Python number costs numpy a conversion in every call
_ZERO, _HALF, _TWO, _CEILING = (np.float32(value) for value in (0, 0.5, 2, 20))


def _silu(x, out):
    """x sigmoid(x) = x (1 + tanh(x / 2)) / 2: no exponential that could overflow."""
    np.multiply(x, _HALF, out=out)
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= _HALF
    return out


def _mish(x, out):
    """x tanh(log(1 + w)) = x n / (n + 2) with w = e^x and n = w (w + 2); 1 beyond x = 20."""
    np.minimum(x, _CEILING, out=out)
    np.exp(out, out=out)
    out *= out + _TWO
    out /= out + _TWO
    out *= x
    return out


_ACTIVATIONS = {
    "relu": lambda x, out: np.maximum(x, _ZERO, out=out),
    "silu": _silu,
    "mish": _mish,
    "tanh": lambda x, out: np.tanh(x, out=out),
}


class Single:
    """Views of one MLP's parameters and the loop over them."""

    def __init__(self, net: MLP):
        self.linears = _linears(net)
        self.held = [parameter for layer in self.linears for parameter in _parameters(layer)]
        self.places = [parameter.data_ptr() for parameter in self.held]
        pairs = [(_array(la.weight), _array(la.bias)) for la in self.linears[:-1]]
        one, two = len(net.encoder.layers), len(net.time.net.layers)
        self.encoder, self.time = pairs[:one], pairs[one : one + two]
        self.inlet = _array(net.inlet.weight)
        self.layers, self.outlet = pairs[one + two : -1], pairs[-1]
        self.activation = _ACTIVATIONS[net.activation_name]
        self.embedding, self.waves = net.time, {}

    @staticmethod
    def serves(net: MLP, obs: Tensor, noise: Tensor) -> bool:
        """Whether the loop may stand in for torch: one row, CPU, f32, no gradient."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        if obs.numel() != net.obs_dim or noise.numel() != net.horizon * net.action_dim:
            return False
        plain = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (obs, noise))
        return plain and net.activation_name in _ACTIVATIONS

    @classmethod
    def build(cls, net: MLP) -> "Single | None":
        """The views of a plain f32 network; None where a layer was replaced by another kind."""
        layers = _linears(net)
        plain = all(type(layer) is nn.Linear for layer in layers)
        known = plain and all(layer.weight.dtype == torch.float32 for layer in layers)
        return cls(net) if known and len(net.encoder.layers) else None

    def current(self, net: MLP) -> bool:
        """Whether the views still show the network's own parameters, none replaced or moved."""
        held = [parameter for layer in _linears(net) for parameter in _parameters(layer)]
        return len(held) == len(self.held) and all(
            new is old and new.data_ptr() == place
            for new, old, place in zip(held, self.held, self.places, strict=True)
        )

    def integrate(self, obs: Tensor, noise: Tensor, path: Linear, steps: int) -> Tensor:
        """One noise [..., T, Da] carried from t = 0 to t = 1 for one normalised obs."""
        if steps not in self.waves:
            self.waves[steps] = self.embedding.waves(path.times(steps)[:-1]).numpy()
        feat = _stack(self.encoder, obs.detach().numpy().reshape(-1), self.activation)
        shifts = _stack(self.time, self.waves[steps], _silu)
        shifts += feat
        x = noise.detach().numpy().reshape(-1)
        span = np.float32(1 / len(shifts))
        act, (weight_out, bias_out) = np.empty_like(feat), self.outlet
        for h in shifts:
            h += self.inlet.dot(x)
            for weight, bias in self.layers:
                h += weight.dot(self.activation(h, act))
                h += bias
            v = weight_out.dot(self.activation(h, act))
            v += bias_out
            v *= span
            x = x + v
        return torch.from_numpy(x).view(noise.shape)


def _linears(net: MLP) -> list[nn.Linear]:
    layers = [*net.encoder.layers, *net.time.net.layers, *net.layers, net.outlet, net.inlet]
    return layers  # type: ignore[return-value]


def _parameters(layer: nn.Module):
    return [parameter for parameter in layer._parameters.values() if parameter is not None]


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def _stack(pairs, x: np.ndarray, activation) -> np.ndarray:
    for index, (weight, bias) in enumerate(pairs):
        x = x @ weight.T if x.ndim == 2 else weight.dot(x)
        x += bias
        if index < len(pairs) - 1:
            x = activation(x, np.empty_like(x))
    return x
