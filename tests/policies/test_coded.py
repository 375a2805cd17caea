"""Noise maps: what a code becomes, and that the prior keeps its size."""

import pytest
import torch

from rheo.policies.coded import NoiseMap


def make(horizon=4, **changes):
    return NoiseMap(horizon, **{"kind": "interpolated", "rows": horizon, "bound": 1.5, **changes})


def test_as_many_rows_as_steps_are_the_noise_itself():
    code = torch.randn(3, 4, 2)
    torch.testing.assert_close(make()(code), 1.5 * code)


def test_one_row_is_repeated_over_the_chunk():
    code = torch.randn(5, 3, 1, 2)
    torch.testing.assert_close(make(rows=1)(code), 1.5 * code.expand(5, 3, 4, 2))


def test_between_two_knots_noise_changes_evenly_up_to_its_scale():
    weight = make(rows=2, bound=1.0).matrix
    torch.testing.assert_close(weight[:, 1] / weight.sum(1), torch.linspace(0, 1, 4))


@pytest.mark.parametrize("kind", ["interpolated", "lowrank"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_the_bases_own_codes_give_noise_of_its_own_variance(kind, rows):
    noise_map = make(kind=kind, rows=rows, bound=2.0)
    generator = torch.Generator().manual_seed(0)
    code = noise_map.prior((40_000,), 2, generator)
    assert code.shape == (40_000, rows, 2)
    assert code.var().item() == pytest.approx(0.25, rel=0.03)
    variance = noise_map(code).var((0, 2))
    assert variance.mean().item() == pytest.approx(1.0, rel=0.03)
    if kind == "interpolated":
        torch.testing.assert_close(variance, torch.ones(4), rtol=0.04, atol=0.0)


def test_a_low_rank_is_the_slowest_cosines():
    matrix = make(kind="lowrank", rows=2).matrix
    torch.testing.assert_close(matrix.T @ matrix, 2.0 * torch.eye(2))
    assert (matrix[:, 0] == matrix[0, 0]).all() and (matrix[:, 1].diff() < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bound": 0.0}, "bound=0.0: must be positive"),
        ({"bound": float("nan")}, "must be positive"),
        ({"rows": 5}, "rows=5: a chunk of horizon=4 has 1 to 4"),
        ({"rows": 0}, "has 1 to 4"),
        ({"kind": "full"}, "choose interpolated or lowrank"),
    ],
)
def test_what_no_map_can_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
