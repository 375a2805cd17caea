"""What a network sees of images: pixels as numbers, encoders, and the module that joins them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rheo.envs.pixels import pack, unpacked
from rheo.policies.encoders import ResNet18, SpatialCNN, ViT, spatial_softmax
from rheo.policies.vision import CNNEye, Eye, ResNetEye, View, ViTEye, unpack

FRONT, WRIST = {"front": (16, 12)}, {"wrist": (8, 8)}
EYES: dict[str, Callable[..., Eye]] = {
    "cnn": lambda view, **more: CNNEye(view, channels=8, shift=0, **{"frozen": False, **more}),
    "resnet": lambda view, **more: ResNetEye(
        view, channels=16, shift=0, **{"frozen": False, **more}
    ),
    "vit": lambda view, **more: ViTEye(
        view, patch=2, depth=1, width=8, heads=2, embedding=6, shift=0,
        **{"frozen": False, **more},
    ),
}  # fmt: skip


def colours(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


def observations(rows: int, images: dict[str, tuple[int, int]], state: int, steps: int) -> Tensor:
    """Random ones [rows, steps (state + pixels)]."""
    parts = [torch.randn(rows, steps, state)]
    parts += [torch.from_numpy(pack(colours(rows, steps, *size))) for size in images.values()]
    return torch.cat(parts, -1).flatten(1)


def test_every_colour_is_an_exact_number_and_comes_back() -> None:
    number = np.arange(1 << 24, dtype=np.uint32)
    every = np.stack([number >> 16, (number >> 8) & 255, number & 255], -1).astype(np.uint8)
    packed = pack(every.reshape(4096, 4096, 3))
    assert packed.dtype == np.float32 and packed.shape == (1 << 24,)
    assert (packed == number).all()
    assert (unpacked(packed, 4096).reshape(-1, 3) == every).all()
    seen = unpack(torch.from_numpy(packed)[None], 4096)[0]  # [3, H, W]
    back = ((seen + 0.5) * 255).round().to(torch.uint8)
    assert (back.flatten(1).T.numpy() == every).all()
    assert seen.min() == -0.5 and seen.max() == 0.5


def test_rows_and_columns_of_an_image_stay_where_they_are() -> None:
    image = colours(5, 16, 12)
    np.testing.assert_array_equal(unpacked(pack(image), 16), image)
    seen = unpack(torch.from_numpy(pack(image)), 16)
    np.testing.assert_allclose((seen + 0.5).permute(0, 2, 3, 1).numpy() * 255, image, atol=1e-4)


@pytest.mark.parametrize("kind", EYES)
@pytest.mark.parametrize("steps", [1, 2])
def test_an_eye_gives_normalised_numbers_and_the_features_of_each_image(
    kind: str, steps: int
) -> None:
    images, state = {**FRONT, **WRIST}, 3
    obs = observations(6, images, state, steps)
    eye = EYES[kind](View(obs.shape[1], images, steps, "gaussian"))
    assert not eye.ready
    eye.affine.fit(eye.own(obs))
    assert eye.ready and eye.affine.dim == steps * state
    seen = eye(obs).unflatten(-1, (steps, -1))
    each = obs.unflatten(-1, (steps, -1))
    numbers = each[..., :state].flatten(1)
    wanted = (numbers - numbers.mean(0)) / numbers.std(0, correction=0)
    torch.testing.assert_close(seen[..., :state].flatten(1), wanted)
    for step in range(steps):
        front, wrist = each[:, step, state:].split([16 * 12, 8 * 8], -1)
        parts = [eye.nets[0](unpack(front, 16)), eye.nets[1](unpack(wrist, 8))]
        torch.testing.assert_close(seen[:, step, state:], torch.cat(parts, -1))
    assert seen.flatten(1).shape[1] == eye.out_dim
    assert eye(obs[:, None].expand(-1, 4, -1)).shape == (6, 4, eye.out_dim)
    torch.testing.assert_close(eye(obs[0]), eye(obs)[0])


@pytest.mark.parametrize("kind", EYES)
def test_without_gradients_an_image_has_the_same_bits_beside_any_others(kind: str) -> None:
    obs = observations(7, FRONT, 2, 1)
    eye = EYES[kind](View(obs.shape[1], FRONT, 1, "none"))
    with torch.no_grad():
        whole = eye(obs)
        assert torch.equal(whole[2:3], eye(obs[2:3])) and torch.equal(whole[4:], eye(obs[4:]))
    torch.testing.assert_close(whole, eye(obs).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", EYES)
def test_a_frozen_eye_takes_what_was_encoded_and_gives_the_same_bits(kind: str) -> None:
    images, steps = {**FRONT, **WRIST}, 2
    obs = observations(5, images, 3, steps)
    eye = EYES[kind](View(obs.shape[1], images, steps, "minmax"))
    eye.affine.fit(eye.own(obs))
    with torch.no_grad():
        plain, encoded = eye(obs), eye.encode(obs)
    width = encoded.shape[1]
    still = EYES[kind](View(width, images, steps, "minmax"), frozen=True)
    still.load_state_dict(eye.state_dict())
    with torch.no_grad():
        assert torch.equal(still.encode(obs), encoded)
    assert torch.equal(still(encoded), plain)
    assert torch.equal(still.own(encoded), eye.own(obs))
    assert not any(p.requires_grad for p in still.parameters())
    blind = EYES[kind](View(width, images, steps, "minmax", holds=False), frozen=True)
    assert not list(blind.parameters()) and blind.out_dim == eye.out_dim
    blind.affine.load_state_dict(eye.affine.state_dict())
    assert torch.equal(blind(encoded), plain)


def test_images_alone_have_no_statistics() -> None:
    eye = EYES["cnn"](View(192, FRONT, 1, "gaussian"))
    assert eye.ready and eye.kind == "none" and eye(observations(2, FRONT, 0, 1)).shape == (2, 32)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="192 numbers of front do not fit an observation of 100"):
        EYES["cnn"](View(100, FRONT, 1, "none"))
    with pytest.raises(ValueError, match="obs has 193 numbers, .*are 194"):
        EYES["cnn"](View(194, FRONT, 1, "none"))(torch.zeros(1, 193))
    with pytest.raises(ValueError, match="eye.channels=12: choose a multiple of 8"):
        CNNEye(View(194, FRONT, 1, "none"), channels=12, shift=0, frozen=False)
    with pytest.raises(ValueError, match="eye.patch=20: images of 16 x 12 have no whole patch"):
        ViT((16, 12), 20, 1, 8, 2, 4)
    with pytest.raises(ValueError, match="eye.width=10: not a multiple of eye.heads=4"):
        ViT((16, 12), 2, 1, 10, 4, 4)


NETS: dict[str, Callable[[], Any]] = {
    "cnn": lambda: SpatialCNN((12, 10), 8),
    "resnet": lambda: ResNet18((12, 10), 16),
    "vit": lambda: ViT((12, 10), 2, 1, 8, 2, 6),
}


@pytest.mark.parametrize("name", NETS)
def test_encoder_gradients_are_those_of_finite_differences(name: str) -> None:
    """Along random directions of all parameters and of the image, in float64."""
    torch.manual_seed(1)
    net = NETS[name]().double()
    image = torch.rand(2, 3, 12, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(net.width, dtype=torch.float64)
    moved = [*net.parameters(), image]

    def value() -> Tensor:
        return (net(image) @ weight).sum()

    gradients = torch.autograd.grad(value(), moved)
    for part, gradient in zip(moved, gradients, strict=True):
        way = torch.randn_like(part)
        way /= way.norm()
        ends = []
        with torch.no_grad():
            for sign in (1, -2, 1):  # there, to the other side, and back
                part.add_(way, alpha=sign * 1e-6)
                ends.append(value().item())
        slope = (ends[0] - ends[1]) / 2e-6
        assert math.isclose(slope, float((gradient * way).sum()), rel_tol=1e-4, abs_tol=1e-6)


def test_a_channel_tells_where_it_is_lit() -> None:
    x = torch.zeros(1, 2, 5, 9)
    x[0, 0, 0, 8] = x[0, 1, 2, 4] = 200.0  # a corner, and the middle
    torch.testing.assert_close(spatial_softmax(x), torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))
    x = torch.randn(1, 1, 2, 3)
    share = x.exp() / x.exp().sum()
    down = sum(float(share[0, 0, i, j]) * (-1, 1)[i] for i in range(2) for j in range(3))
    across = sum(float(share[0, 0, i, j]) * (-1, 0, 1)[j] for i in range(2) for j in range(3))
    torch.testing.assert_close(spatial_softmax(x), torch.tensor([[down, across]]))


def test_the_spatial_embedding_is_the_papers() -> None:
    """z_e = sum_c W_ce relu(norm(A h_c))_e, number by number."""
    net = ViT((12, 10), 2, 0, 4, 2, 3)
    image = torch.rand(1, 3, 12, 10)
    tokens = net.second(nn.functional.relu(net.inlet(image))).flatten(2).transpose(1, 2) + net.place
    h = net.norm(tokens)[0]  # [P, width]
    wanted = torch.zeros(3)
    for c in range(4):
        row = net.spread.weight @ h[:, c] + net.spread.bias
        row = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt()
        row = row * net.spread_norm.weight + net.spread_norm.bias
        wanted += net.weight[c] * row.clamp(min=0)
    torch.testing.assert_close(net(image)[0], wanted)


def test_resnet18_has_its_paper_s_shape() -> None:
    net = ResNet18((84, 84), 64)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 20 and net.width == 512  # 17 and three at strides
    assert sum(p.numel() for p in convolutions[0].parameters()) == 64 * 3 * 49
    assert sum(c.weight.numel() for c in convolutions) == 11_166_912
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
