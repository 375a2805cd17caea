"""An MLP policy and an ensemble of critics for one state on the CPU, in numpy.

At batch 1 a torch operation costs more than its arithmetic; numpy's calls are several times
lighter. It serves one state with a few noises or actions, as best-of-N has them; they are the
columns of every array. The arrays are views of the parameters, so there is nothing to refresh
after an update. `quicken` puts this way on a module, which then takes it wherever it serves; the
result equals the plain way up to the rounding of a matrix product (1e-6).
"""

import functools

import numpy as np
import torch
from torch import Tensor, nn

from .critics import QEnsemble
from .flow import FlowPolicy
from .narrow import narrowed
from .nets import MLP
from .paths import Grid, Linear, spans

FEW = 32  # columns at most; beyond, arithmetic is most of the time and torch's is as fast

# scalars of the arrays' type: a Python number costs numpy a conversion in every call
_HALF, _TWO, _CEILING = (np.float32(value) for value in (0.5, 2, 20))
_EPSILON = np.float32(1e-5)  # of torch's layer normalisation


@functools.cache
def _zeros(shape):
    return np.zeros(shape, np.float32)


def _relu(x, out):
    """The larger of x and an array of zeros: numpy compares with a number three times as slowly."""
    return np.maximum(x, _zeros(x.shape), out=out)


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
    "relu": _relu,
    "silu": _silu,
    "mish": _mish,
    "tanh": lambda x, out: np.tanh(x, out=out),
}


def serves(obs: Tensor, chunk: Tensor, obs_dim: int, size: int) -> bool:
    """Whether this way may stand in for torch.

    It may without gradients, in f32 on the CPU, for one state obs [..., O] and 1 to FEW chunks
    [..., T, Da] of `size` numbers that have no fewer leading dimensions; not where torch would
    multiply in bfloat16.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or narrowed():
        return False
    if obs.numel() != obs_dim or obs.ndim >= chunk.ndim or not 0 < chunk.numel() <= FEW * size:
        return False
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (obs, chunk))


def quicken(module: nn.Module) -> None:
    """Lets the flows over an MLP and the ensembles of critics in a module take this way."""
    for part in module.modules():
        if type(part) is FlowPolicy:
            part.act = QuickAct(part)
        elif type(part) is QEnsemble:
            part.forward = QuickValues(part)


def unquickened(module: nn.Module) -> None:
    """Takes it off again, for who follows every operation of torch's."""
    for part in module.modules():
        for name in ("act", "forward"):
            if isinstance(vars(part).get(name), QuickAct | QuickValues):
                delattr(part, name)


class QuickAct:
    """`FlowPolicy.act` in numpy where that gives the same result. It is copied with its policy."""

    def __init__(self, policy: FlowPolicy) -> None:
        self.policy, self.held = policy, None

    def __call__(
        self, obs: Tensor, noise: Tensor, steps: int | None = None, clip: bool = True
    ) -> Tensor:
        policy, loop, path = self.policy, self.loop(obs, noise), self.policy.path
        if loop is None or not isinstance(path, Linear):
            return FlowPolicy.act(policy, obs, noise, steps, clip)
        steps = policy.steps if steps is None else steps
        x = loop.integrate(policy.obs_norm(obs), noise, path, steps, policy.grid)
        return policy.to_action(x, clip)

    def loop(self, obs: Tensor, noise: Tensor) -> "Single | None":
        """The loop for one state; None where it does not serve."""
        net = self.policy.net
        if not (self.policy.plain and type(net) is MLP and Single.serves(net, obs, noise)):
            return None
        if self.held is None or not self.held.views.current():
            self.held = Single.build(net)
        return self.held


class QuickValues:
    """`QEnsemble.forward` in numpy where that gives the same result."""

    def __init__(self, critic: QEnsemble) -> None:
        self.critic, self.held = critic, None

    def __call__(self, obs: Tensor, action: Tensor) -> Tensor:
        critic = self.critic
        if not SingleQ.serves(critic, obs, action):
            return QEnsemble.forward(critic, obs, action)
        if self.held is None or not self.held.views.current():
            self.held = SingleQ(critic)
        return self.held.values(critic.obs_norm(obs), action)


class Views:
    """A module's parameters as arrays were made of them, and whether they are still its own."""

    def __init__(self, module: nn.Module) -> None:
        boxes = [box for part in module.modules() for box in (part._modules, part._parameters)]
        self.sizes = [(box, len(box)) for box in boxes]
        self.links = [(box, name, held) for box in boxes for name, held in box.items()]
        self.places = [(each, each.data_ptr()) for each in module.parameters()]

    def current(self) -> bool:
        """Whether no part was added or replaced and no parameter moved."""
        return (
            all(len(box) == size for box, size in self.sizes)
            and all(box.get(name) is held for box, name, held in self.links)
            and all(each.data_ptr() == place for each, place in self.places)
        )


class Single:
    """Views of one MLP's parameters and Euler's loop over them."""

    def __init__(self, net: MLP):
        self.views = Views(net)
        pairs = [(_array(la.weight), _column(la.bias)) for la in _linears(net)[:-1]]
        one, two = len(net.encoder.layers), len(net.time.net.layers)
        self.encoder, self.time = pairs[:one], pairs[one : one + two]
        self.inlet = _array(net.inlet.weight)
        self.layers, self.outlet = pairs[one + two : -1], pairs[-1]
        self.activation = _ACTIVATIONS[net.activation_name]
        self.embedding, self.waves = net.time, {}

    @staticmethod
    def serves(net: MLP, obs: Tensor, noise: Tensor) -> bool:
        """Whether the loop may stand in for torch."""
        size = net.horizon * net.action_dim
        return serves(obs, noise, net.obs_dim, size) and net.activation_name in _ACTIVATIONS

    @classmethod
    def build(cls, net: MLP) -> "Single | None":
        """The views of a plain f32 network; None where a layer was replaced by another kind."""
        layers = _linears(net)
        plain = all(type(layer) is nn.Linear for layer in layers)
        known = plain and all(layer.weight.dtype == torch.float32 for layer in layers)
        return cls(net) if known and len(net.encoder.layers) else None

    def integrate(self, obs: Tensor, noise: Tensor, path: Linear, steps: int, grid: Grid) -> Tensor:
        """Noises [..., T, Da] carried from t = 0 to t = 1 for one normalised obs."""
        if (steps, grid) not in self.waves:
            waves = self.embedding.waves(path.times(steps, grid=grid)[:-1])
            self.waves[steps, grid] = np.ascontiguousarray(waves.numpy().T)
        feat = _stack(self.encoder, _columns(obs, obs.numel()), self.activation)
        shifts = _stack(self.time, self.waves[steps, grid], _silu)
        shifts += feat
        x = _columns(noise, len(self.outlet[0]))
        weight_out, bias_out = self.outlet
        act = np.empty((len(feat), x.shape[1]), np.float32)
        step = np.empty_like(act)
        for shift, span in zip(shifts.T[..., None], spans(steps, grid), strict=True):
            h = self.inlet.dot(x)
            h += shift
            for weight, bias in self.layers:
                h += np.add(np.dot(weight, self.activation(h, act), out=step), bias, out=step)
            v = weight_out.dot(self.activation(h, act))
            v += bias_out
            v *= np.float32(span)
            x = x + v
        return _chunks(x, noise.shape)


class SingleQ:
    """Views of a `QEnsemble`'s parameters, all members at once."""

    def __init__(self, critic: QEnsemble):
        self.views = Views(critic)
        self.seen, self.acted = _array(critic.obs_weight), _array(critic.action_weight)
        self.weights = [_array(weight) for weight in critic.weights]
        self.biases, self.gains, self.shifts = (
            [_column(vector) for vector in vectors]
            for vectors in (critic.biases, critic.gains, critic.shifts)
        )
        self.activation = _ACTIVATIONS[critic.activation_name]
        width = self.seen.shape[1]
        self.average = np.full((1, 1, width), 1 / width, np.float32)

    @staticmethod
    def serves(critic: QEnsemble, obs: Tensor, action: Tensor) -> bool:
        """Whether it may stand in for torch."""
        one, two = critic.obs_weight, critic.action_weight
        if one.dtype != torch.float32 or critic.activation_name not in _ACTIVATIONS:
            return False
        return serves(obs, action, one.shape[-1], two.shape[-1])

    def values(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q of actions [..., T, Da] in one normalised obs: [E, ...]."""
        h = np.matmul(self.acted, _columns(action, self.acted.shape[-1]))
        h += np.matmul(self.seen, _columns(obs, obs.numel())) + self.biases[0]
        act = np.empty_like(h)
        for index, weight in enumerate(self.weights):
            if self.gains:
                self._normalise(h, self.gains[index], self.shifts[index], act)
            h = np.matmul(weight, self.activation(h, act))
            h += self.biases[index + 1]
        return torch.from_numpy(h).view(len(h), *action.shape[:-2])

    def _normalise(self, h, gain, shift, room) -> None:
        """Layer normalisation of columns h [E, W, N] in place; room: of h's shape."""
        h -= np.matmul(self.average, h)
        variance = np.matmul(self.average, np.multiply(h, h, out=room))
        variance += _EPSILON
        h /= np.sqrt(variance, out=variance)
        h *= gain
        h += shift


def _linears(net: MLP) -> list[nn.Linear]:
    layers = [*net.encoder.layers, *net.time.net.layers, *net.layers, net.outlet, net.inlet]
    return layers  # type: ignore[return-value]


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def _column(parameter: Tensor) -> np.ndarray:
    return _array(parameter)[..., None]


def _columns(x: Tensor, size: int) -> np.ndarray:
    return np.ascontiguousarray(x.detach().numpy().reshape(-1, size).T)


def _chunks(x: np.ndarray, shape: torch.Size) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.T)).view(shape)


def _stack(pairs, x: np.ndarray, activation) -> np.ndarray:
    for index, (weight, bias) in enumerate(pairs):
        x = weight.dot(x)
        x += bias
        if index < len(pairs) - 1:
            x = activation(x, np.empty_like(x))
    return x
