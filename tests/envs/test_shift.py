"""Random shifts of images, and who sees them."""

from functools import partial
from typing import Any

import dots
import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs.batch import Batch, Choice, Windows
from rheo.envs.chunk import ChunkEnv
from rheo.envs.encoded import Encoded
from rheo.envs.pixels import pack, unpacked
from rheo.envs.shift import Shift, shifted
from rheo.envs.sources import Replay, Rollouts
from rheo.envs.suites import make
from rheo.errors import EnvError

dots.register()
SIZES = {"front": (5, 7), "side": (4, 4)}
STATE, STEPS, PAD = 2, 2, 3
DIM = STEPS * (STATE + 35 + 16)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_shifted_image_is_a_crop_of_the_padded_one_and_all_else_stays() -> None:
    rng = np.random.default_rng(0)
    images = {k: rng.integers(0, 256, (64, STEPS, *size, 3), np.uint8) for k, size in SIZES.items()}
    state, tail = torch.randn(64, STEPS, STATE), torch.randn(64, 3)
    packed = [torch.from_numpy(pack(image)) for image in images.values()]
    obs = torch.cat([torch.cat([state, *packed], -1).flatten(1), tail], 1)
    out = Shift(SIZES, STEPS, DIM, PAD)(obs, generator())
    assert out.shape == obs.shape and torch.equal(out[:, DIM:], tail)
    steps = out[:, :DIM].unflatten(-1, (STEPS, -1))
    assert torch.equal(steps[..., :STATE], state)
    found = set()
    start = STATE
    for name, (height, width) in SIZES.items():
        seen = unpacked(steps[..., start : start + height * width].numpy(), height)
        start += height * width
        wide = np.pad(images[name], ((0, 0), (0, 0), (PAD, PAD), (PAD, PAD), (0, 0)), "edge")
        for row in range(64):
            fits = [
                (y, x)
                for y in range(2 * PAD + 1)
                for x in range(2 * PAD + 1)
                if (wide[row, :, y : y + height, x : x + width] == seen[row]).all()
            ]  # both steps of the history by the same way
            assert fits
            found |= {(name, *fits[0])}
    assert len(found) > 60  # of two times 49: every row and camera its own


def test_batches_and_windows_are_shifted_anew_every_time() -> None:
    obs = torch.randint(1 << 24, (4, 16)).float()
    shift, draw = Shift({"a": (4, 4)}, 1, 16, 2), generator()
    windows = Windows(obs, torch.zeros(4, 1, 1), torch.ones(4, 1, dtype=torch.bool))
    assert shifted(windows, None, draw) is windows
    one, two = shifted(windows, shift, draw), shifted(windows, shift, draw)
    assert not torch.equal(one.obs, two.obs) and torch.equal(windows.obs, obs)
    zeros = torch.zeros(4)
    batch = shifted(Batch(obs, windows.action, zeros, zeros, obs), shift, draw)
    assert not torch.equal(batch.obs, batch.next_obs)


def world(count: int = 3) -> ChunkEnv:
    return ChunkEnv(make(dots.NAME, count, seed=0), execute=1, obs_steps=1, gamma=0.9)


def test_on_policy_what_was_acted_on_is_what_is_kept() -> None:
    env = world()
    source = Rollouts(env, generator(), 1, decisions=5)
    source.shift = Shift(env.env.obs_images, 1, env.obs_dim, 2)
    met = []

    def act(obs: torch.Tensor) -> Choice:
        met.append(obs.clone())
        return Choice(torch.zeros(len(obs), 1, 1), {})

    rollout = source.next(act)
    assert torch.equal(rollout.obs, torch.stack(met))
    here, there = rollout.obs[1:4], rollout.next_obs[:3]  # of one episode: those are as they were
    assert torch.equal(here[..., :1], there[..., :1])
    assert not torch.equal(here[..., 1:], there[..., 1:])


def test_off_policy_the_replay_keeps_them_as_they_were() -> None:
    env = world()
    settings = {"capacity": 50, "batch_size": 8, "warmup": 12, "update_ratio": 1.0}
    source = Replay(env, generator(), 1, **settings)  # type: ignore[arg-type]
    source.shift = Shift(env.env.obs_images, 1, env.obs_dim, 2)
    batch = source.next(lambda obs: torch.zeros(len(obs), 1, 1))
    kept = {row.numpy().tobytes() for row in source.buffer.rows[: source.buffer.size, :145]}
    assert sum(row.numpy().tobytes() in kept for row in batch.obs) < 8
    assert {float(row[0]) for row in batch.obs} <= {
        float(row[0]) for row in source.buffer.rows[: source.buffer.size]
    }


def test_a_replay_of_images_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rheo.envs.sources.available", lambda: 10**6)
    settings: dict[str, Any] = {"batch_size": 8, "warmup": 12, "update_ratio": 1.0}
    for capacity, fits in ((500, True), (5000, False)):
        make_it = partial(Replay, world(), generator(), 1, capacity=capacity, **settings)
        if fits:
            make_it()
            continue
        with pytest.raises(EnvError, match=r"5.8 MB, and 1.0 MB .* lower source.capacity, or keep"):
            make_it()
    encoded = Encoded(make(dots.NAME, 1, seed=0), 2)
    env = ChunkEnv(encoded, execute=1, obs_steps=1, gamma=0.9)
    Replay(env, generator(), 1, capacity=5000, **settings)


def see(obs: torch.Tensor) -> torch.Tensor:
    """Two numbers of an image."""
    return torch.cat([obs[..., :1], obs[..., 1:].amax(-1, True), obs[..., 1:2]], -1)


def test_encoded_environments_are_the_others_with_features_for_pixels() -> None:
    plain, encoded = make(dots.NAME, 3, seed=0), Encoded(make(dots.NAME, 3, seed=0), 2)
    encoded.see = see
    assert encoded.obs_dim == 3 and encoded.obs_parts == plain.obs_parts
    assert torch.equal(encoded.reset(5), see(plain.reset(5)))
    for count in range(9):
        action = torch.full((3, 1), 0.1 * count)
        active = torch.tensor([True, count % 2 == 0, count % 3 == 0])
        one, two = plain.step(action, active), encoded.step(action, active)
        assert torch.equal(two.final_obs, see(one.final_obs))
        assert torch.equal(two.obs, see(one.obs)) and torch.equal(one.reward, two.reward)
        assert (two.obs is two.final_obs) == (one.obs is one.final_obs)


def test_an_encoded_environment_that_was_given_no_encoder_says_so() -> None:
    with pytest.raises(RuntimeError, match="has to be set before"):
        Encoded(make(dots.NAME, 1, seed=0), 2).reset(0)


class Bright(dots.Dots):
    """Images of another type than its space says."""

    def look(self) -> dict[str, Any]:
        seen = super().look()
        return seen | {"front_image": seen["front_image"] / 255}


def test_images_of_another_type_than_promised_are_refused_by_name() -> None:
    kind: Any = Bright  # this module has no name that could be imported
    gymnasium.register("RheoBright-v0", kind)
    with pytest.raises(EnvError, match="RheoBright-v0, environment 0 .*float64, where uint8"):
        make("RheoBright-v0", 1).reset(0)
