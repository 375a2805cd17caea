"""Noise of an episode's own: whatever happens in the rows beside it."""

import numpy as np
import pytest
import torch

from rheo.envs.noise import AHEAD, EpisodeNoise, filled
from rheo.policies import draw

CPU = torch.device("cpu")


def drawn(count: int, ends: dict[int, list[int]], draws: int = 2 * AHEAD + 5) -> np.ndarray:
    """Draws [draws, count, 2, 3] of rows whose episodes end behind the draws that `ends` lists."""
    noise, rows = EpisodeNoise(5, count), []
    for k in range(draws):
        rows.append(draw.normal((count, 2, 3), noise, device=CPU).numpy())
        noise.begin(np.array([k in ends.get(i, []) for i in range(count)]))
    return np.stack(rows)


def test_a_rows_noise_depends_neither_on_other_rows_nor_on_when_those_end():
    few, many = drawn(2, {0: [4]}), drawn(7, {0: [4], 3: [0, 9], 6: [40]})
    assert np.array_equal(few, many[:, :2])
    assert not np.array_equal(many[:, 1], many[:, 2])


def test_an_episode_has_the_same_noise_whenever_it_begins():
    early, late = drawn(1, {0: [2]}), drawn(1, {0: [50]})
    assert np.array_equal(early[3:17, 0], late[51:65, 0])
    assert not np.array_equal(early[0, 0], early[3, 0])  # and another than the one before


def test_a_row_that_stands_there_twice_has_its_noise_twice():
    noise, plain = EpisodeNoise(5, 3), EpisodeNoise(5, 3)
    noise.rows = filled(np.arange(3), 4)
    for _ in range(AHEAD + 3):
        four, three = noise.normal((4, 2)), plain.normal((3, 2))
        assert torch.equal(four, three[[0, 1, 2, 0]])


def test_it_is_normal_and_exponential_and_seeds_and_streams_differ():
    noise = EpisodeNoise(0, 50)
    normal = torch.stack([noise.normal((50, 8)) for _ in range(100)])
    waiting = torch.stack([draw.exponential(torch.empty(50, 8), noise) for _ in range(100)])
    assert abs(float(normal.mean())) < 4 / 200 and abs(float(normal.var()) - 1) < 8 / 200
    assert abs(float(waiting.mean()) - 1) < 4 / 200 and float(waiting.min()) >= 0
    across = np.corrcoef(normal[:, :, 0].numpy().T)
    assert np.abs(across - np.eye(50)).max() < 0.5  # 100 draws: a deviation of 0.1
    first = normal[0]
    for other in (EpisodeNoise(1, 50), EpisodeNoise(0, 50, stream=1)):
        assert not torch.equal(other.normal((50, 8)), first)


def test_candidates_of_a_row_are_its_own():
    few, many = (EpisodeNoise(3, count).normal((count * 4, 2)) for count in (2, 5))
    assert torch.equal(few, many[:8])
    with pytest.raises(ValueError, match="not for 5 rows"):
        EpisodeNoise(3, 5).normal((7, 1))


def test_torchs_own_functions_take_it_for_a_generator_with_its_seed():
    own = torch.rand(4, generator=EpisodeNoise(9, 2))
    assert torch.equal(own, torch.rand(4, generator=torch.Generator().manual_seed(9)))
    plain = torch.Generator().manual_seed(9)
    ours = draw.normal((4,), torch.Generator().manual_seed(9), device=CPU)
    assert torch.equal(ours, torch.randn(4, generator=plain))


@pytest.mark.parametrize(("rows", "tile", "size"), [(1, 8, 8), (8, 8, 8), (9, 8, 16), (3, 64, 64)])
def test_rows_are_filled_up_to_whole_tiles(rows, tile, size):
    index = filled(np.arange(rows), tile)
    assert len(index) == size and index[:rows].tolist() == list(range(rows))
    assert set(index.tolist()) == set(range(rows))
