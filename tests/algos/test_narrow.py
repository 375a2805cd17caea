"""`precision=bf16`: which numbers are in bfloat16, which are not, and that learning stays so."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from shipped import ALGOS
from tape import TapeRecorder
from torch import Tensor, nn

from rheo.algos.optim import recordable, shown
from rheo.envs.sources import Rollouts
from rheo.errors import RheoError
from rheo.policies.critics import QEnsemble
from rheo.policies.encoders import ResNet18, SpatialCNN, ViT
from rheo.policies.narrow import bfloat16, narrowed
from rheo.policies.nets import MLP, Stack, Transformer, UNet1d
from rheo.policies.numpy_mlp import quicken
from rheo.scripts import fast
from rheo.scripts.assemble import Experiment, assemble
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose, load
from rheo.scripts.graph import Recorded
from rheo.scripts.store.state import capture, optimizers, tensors

CPU = torch.device("cpu")
RATIOS = ("dppo", "fpo", "fpo_pp", "ppo", "reinflow", "resip", "rlcm")
COMMON: Any = {"encoder_depth": 2, "activation": "silu"}
UNET: Any = {"widths": [16, 32], "kernel": 3, "groups": 4}
CHUNK = (torch.randn(5, 8, 2), torch.rand(5))


def over_chunks(net: Any) -> Callable[[], Tensor]:
    nn.init.normal_(net.outlet.weight, std=0.1)
    obs = torch.randn(5, 3)
    return lambda: net(CHUNK[0], net.embed(CHUNK[1]), net.encode(obs))


def over_images(net: Any) -> Callable[[], Tensor]:
    image = torch.rand(2, 3, 48, 48) - 0.5
    return lambda: net(image)


def judged(**settings: Any) -> Callable[[], Tensor]:
    net = QEnsemble(3, 2, 4, members=2, width=32, depth=2, activation="mish", **settings)
    obs, action = torch.randn(5, 3), torch.rand(5, 4, 2)
    return lambda: net(obs, action)


def layers_of(net: Any) -> list[nn.Linear]:
    return [*net.layers]


NETWORKS: dict[str, Callable[[], Callable[[], Tensor]]] = {
    "stack": lambda: partial(Stack([3, 32, 32, 2], "tanh", True), torch.randn(9, 3)),
    "mlp": lambda: over_chunks(MLP(3, 2, 8, width=32, depth=2, **COMMON)),
    "unet": lambda: over_chunks(UNet1d(3, 2, 8, width=32, **UNET, **COMMON)),
    "transformer": lambda: over_chunks(Transformer(3, 2, 8, width=32, depth=2, heads=4, **COMMON)),
    "critics": lambda: judged(layer_norm=False),
    "critics, normalised": lambda: judged(layer_norm=True),
    "cnn": lambda: over_images(SpatialCNN((48, 48), 16)),
    "resnet": lambda: over_images(ResNet18((48, 48), 16)),
    "vit": lambda: over_images(ViT((48, 48), 8, 1, 32, 4, 16)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("learning", [True, False])
def test_every_network_is_itself_to_three_digits_and_gives_float32(
    name: str, learning: bool
) -> None:
    net = NETWORKS[name]()
    with torch.set_grad_enabled(learning):
        exact = net()
        with bfloat16(CPU):
            rough = net()
        assert torch.equal(net(), exact)
    assert rough.dtype == exact.dtype == torch.float32
    error = float((rough - exact).detach().norm() / exact.detach().norm())
    assert 1e-5 < error < 2e-2


def test_products_are_of_bfloat16_up_to_the_last_layer_and_weights_stay() -> None:
    """Beside the same products written out."""
    net, x = Stack([6, 64, 64, 3], "relu"), torch.randn(20, 6)
    one, two, last = layers_of(net)
    low: Any = lambda layer: (layer.weight.bfloat16(), layer.bias.bfloat16())  # noqa: E731
    h = F.relu(F.linear(F.relu(F.linear(x.bfloat16(), *low(one))), *low(two)))
    expected = F.linear(h.float(), last.weight, last.bias)
    with bfloat16(CPU):
        found = net(x)
        found.square().sum().backward()
    assert torch.allclose(found, expected, atol=1e-6)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_a_step_within_an_update_is_seen_by_what_comes_after_it() -> None:
    """Casts of weights that were kept would be those before it."""
    net, x = Stack([4, 32, 1], "relu"), torch.ones(1, 4)
    with bfloat16(CPU):
        net(x).sum().backward()
        with torch.no_grad():
            for parameter in net.layers[0].parameters():
                parameter.zero_()
        assert torch.equal(net(x)[0], layers_of(net)[-1].bias)


def test_the_context_ends_with_an_error_too_and_may_be_entered_twice() -> None:
    with pytest.raises(ZeroDivisionError), bfloat16(CPU), bfloat16(CPU):
        assert narrowed()
        raise ZeroDivisionError
    assert not narrowed()


def test_one_state_takes_the_way_of_the_others() -> None:
    """Not that of numpy, which is in float32: acting would see other networks than learning."""
    critic = QEnsemble(3, 2, 1, members=2, width=32, depth=2, layer_norm=False, activation="relu")
    quicken(critic)
    obs, action = torch.randn(1, 3), torch.rand(1, 1, 2)
    with torch.no_grad(), bfloat16(CPU):
        rough = critic(obs, action)
        assert torch.equal(rough, QEnsemble.forward(critic, obs, action))
    with torch.no_grad():
        assert not torch.allclose(rough, critic(obs, action), atol=1e-5)


# ---- algorithms --------------------------------------------------------------------------------


def made(words: list[str]) -> Experiment:
    return assemble(compose(words))


def acted(side: Experiment, numbers: str) -> Any:
    return side.source.next(fast.exploring(side.algo, numbers, isinstance(side.source, Rollouts)))


def losses(side: Experiment, batch: Any, numbers: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The loss of every step of an update, and its metrics."""
    found: list[Tensor] = []

    def look(stage: str, _: Any, loss: Tensor) -> None:
        if stage == "loss":
            found.append(loss.detach())

    with shown(look):
        told = fast.narrow(side.algo.update, side.algo, numbers)(batch)
    return found, told


@pytest.mark.parametrize("algo", ALGOS)
def test_every_algorithm_has_about_the_same_loss_and_keeps_its_numbers_in_float32(
    tiny: Callable[..., list[str]], algo: str
) -> None:
    words = tiny(algo, "r")
    exact, rough = made(words), made(words)
    found: list[tuple[list[Tensor], list[Tensor]]] = []
    for _ in range(2):
        batch = acted(exact, "float32")
        rough.algo.generator.set_state(exact.algo.generator.get_state())
        one, told = losses(exact, batch, "float32")
        two, other = losses(rough, batch, "bf16")
        found.append((one, two))
        assert told.keys() == other.keys() and len(one) == len(two) > 0
        assert not any(each.dtype == torch.bfloat16 for each in [*two, *other.values()])
    first, rounded = (float(each[0]) for each in found[0])
    assert abs(first - rounded) <= 0.02 * max(1.0, abs(first))
    assert any(not torch.equal(a, b) for pair in found for a, b in zip(*pair, strict=True))
    for name, each in tensors(capture(rough.algo), ""):
        assert each.dtype != torch.bfloat16 and bool(each.isfinite().all()), name


@pytest.mark.parametrize("algo", RATIOS)
@pytest.mark.parametrize("envs", [1, 3])
def test_the_first_ratio_is_one_where_acting_sees_what_learning_does(
    tiny: Callable[..., list[str]], algo: str, envs: int
) -> None:
    words = tiny(algo, "r", f"env.num_envs={envs}")
    side, apart = made(words), made(words)
    for each in (side, apart):
        generator = torch.Generator().manual_seed(5)
        for parameter in each.algo.tuned():  # output layers that are not zero
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.1 * noise)
    update = fast.narrow(side.algo.update, side.algo, "bf16")
    told = update(acted(side, "bf16"))
    assert float(told["policy/first_ratio_error"]) <= 1e-5
    other = fast.narrow(apart.algo.update, apart.algo, "bf16")(acted(apart, "float32"))
    assert float(other["policy/first_ratio_error"]) > 1e-5


@pytest.mark.parametrize("algo", ["rfm", "sac", "reinflow", "bc"])
def test_it_can_be_recorded(tiny: Callable[..., list[str]], algo: str) -> None:
    words, recorder = tiny(algo, "r"), TapeRecorder()
    run, replayed = made(words), made(words)
    for _, optimizer in optimizers(run.algo):
        recordable(optimizer)
    replayed.algo.learn_from = Recorded(replayed.algo, recorder)
    for _ in range(4 if algo == "reinflow" else 12):
        for side in (run, replayed):
            batch = side.source.next(side.algo.act)
            fast.narrow(side.algo.update, side.algo, "bf16")(batch)
    assert recorder.played >= 2
    states = [list(tensors(capture(side.algo), "")) for side in (run, replayed)]
    for (name, one), (_, two) in zip(*states, strict=True):
        assert torch.allclose(one.double(), two.double(), rtol=1e-3, atol=1e-4), name


def test_it_can_be_compiled_and_what_was_compiled_outside_is_not_taken_inside() -> None:
    net, x = Stack([4, 32, 1], "relu"), torch.randn(8, 4)
    compiled = torch.compile(lambda: net(x).square().mean(), dynamic=False, backend="aot_eager")
    exact = compiled()
    with bfloat16(CPU):
        rough = compiled()
        assert torch.allclose(rough, net(x).square().mean(), rtol=1e-4)
    assert not torch.equal(rough, exact)
    assert torch.equal(compiled(), exact)


# ---- runs --------------------------------------------------------------------------------------


def test_updates_are_narrowed_in_every_mode_and_acting_on_policy_alone() -> None:
    seen: list[bool] = []

    class Algo:
        generator, pure = torch.Generator(), ()

        def update(self, batch: Any) -> None:
            seen.append(narrowed())

        act = deploy = update

    algo: Any = Algo()
    for mode in ("off", "precision", "compile"):
        fast.fast(algo, mode, "bf16")(0)
    fast.exploring(algo, "bf16", True)(0)
    assert seen == [True] * 4
    fast.exploring(algo, "bf16", False)(0)
    fast.fast(algo, "precision")(0)
    fast.fast_deploy(algo, "precision", 64)(0)
    assert seen[4:] == [False] * 3


def test_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    algo = SimpleNamespace(generator=SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(RheoError, match="precision=bf16: Old GPU has no bfloat16"):
        fast.narrow(lambda: None, algo, "bf16")


def test_a_wrong_value_is_one_line_and_runs_without_the_key_are_in_float32(
    tiny: Callable[..., list[str]],
    unvouched: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", *tiny("sac", "r", "steps=60", "eval_every=1000")]
    assert main([*words, "precision=fp16"]) == 2
    assert "precision: must be" in capsys.readouterr().err
    assert main(words) == 0
    unvouched(Path("runs/r"))
    file = Path("runs/r/config.yaml")
    text = file.read_text()
    assert "precision: float32\n" in text
    file.write_text(text.replace("precision: float32\n", ""))
    assert load(Path("runs/r"), [])["precision"] == "float32"
    assert main(["resume", "r", "steps=80"]) == 0
