"""Statistics: fit, constant dimensions, checkpoints, misuse."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rheo.policies.normalize import Normalizer

DATA = torch.tensor([[0.0, 5.0, -2.0], [1.0, 5.0, 2.0], [4.0, 5.0, 0.0]])


def test_minmax_maps_the_range_to_the_box_and_a_constant_to_zero(caplog):
    norm = Normalizer(3, kind="minmax", feature="obs")
    with caplog.at_level(logging.WARNING, logger="rheo"):
        assert norm.fit(DATA) == [1]
    assert "obs" in caplog.text and "[1]" in caplog.text
    out = norm(DATA)
    assert out[:, 0].tolist() == [-1, -0.5, 1] and out[:, 2].tolist() == [-1, 1, 0]
    assert out[:, 1].tolist() == [0, 0, 0]
    assert norm(torch.tensor([4.0, 6.0, 2.0])).tolist() == [1, 1, 1]  # unit scale if it moves


def test_gaussian_has_zero_mean_and_unit_deviation():
    norm = Normalizer(3, kind="gaussian")
    assert norm.fit(DATA) == [1]
    out = norm(DATA)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        out.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]), rtol=0, atol=1e-6
    )


def test_a_dimension_that_moves_only_by_rounding_counts_as_constant():
    column = 1e4 + 1e-3 * torch.rand(100, 1, dtype=torch.float64)
    assert Normalizer(1, kind="gaussian").fit(column) == [0]
    assert Normalizer(1, kind="minmax").fit(torch.tensor([[1e4], [1e4 + 1]])) == []


@pytest.mark.parametrize("kind", ["gaussian", "minmax"])
@pytest.mark.parametrize("size", [0.5, -40.0, 3e-5])
def test_noise_around_a_value_is_no_unit_to_measure_by(kind, size, caplog):
    draws = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = Normalizer(2, kind=kind, feature="obs")
    data = draws * torch.tensor([1.0, 2e-5 * size]) + torch.tensor([0.0, size])
    with caplog.at_level(logging.WARNING, logger="rheo"):
        constant = norm.fit(data)
    if abs(size) < 1e-3:  # below rounding of ordinary numbers: constant, as it was before
        assert constant == [1] and norm.scale[1] == 1
        return
    assert constant == [] and "obs: dimensions [1] vary by less than 0.001" in caplog.text
    assert norm.scale[1] == pytest.approx(1e-3 * abs(size), rel=1e-3)
    moved = norm(torch.tensor([[0.0, 1.2 * size]], dtype=torch.float64))
    assert abs(moved[0, 1]) == pytest.approx(200, rel=1e-2)  # 10,000 by its own noise
    numbers = draws[:, 0].numpy()
    spread = numbers.std() if kind == "gaussian" else np.ptp(numbers) / 2
    assert norm.scale[0] == pytest.approx(spread, rel=1e-6)  # the other keeps its own


@pytest.mark.parametrize("scales", [(1e-4, 100.0), (1e-4, 1.0), (1e3, 1e7)])
def test_small_units_beside_large_ones_keep_their_scale(scales, caplog):
    draws = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    norm = Normalizer(2, kind="gaussian")
    with caplog.at_level(logging.WARNING, logger="rheo"):
        assert norm.fit(draws * torch.tensor(scales)) == []
    assert caplog.text == ""
    out = norm(draws * torch.tensor(scales))
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-5)


def test_an_old_checkpoint_keeps_the_scale_that_it_stored():
    norm, state = Normalizer(1, kind="gaussian"), Normalizer(1, kind="gaussian").state_dict()
    state |= {"shift": torch.tensor([0.5]), "scale": torch.tensor([1e-5])}
    norm.load_state_dict(state | {"fitted": torch.tensor(True)})
    assert norm(torch.tensor([[0.6]])).item() == pytest.approx(1e4, rel=1e-3)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30),
    st.sampled_from(["minmax", "gaussian", "none"]),
)
def test_inverse_undoes_forward(values, kind):
    data = torch.tensor(values)[:, None]
    norm = Normalizer(1, kind=kind)
    norm.fit(data)
    torch.testing.assert_close(norm.inverse(norm(data)), data, rtol=1e-4, atol=1e-3)


def test_none_is_the_identity_without_a_fit():
    assert Normalizer(3, kind="none")(DATA) is DATA


def test_using_it_before_a_fit_is_an_error_that_a_checkpoint_cures():
    norm = Normalizer(3, kind="minmax", feature="action")
    with pytest.raises(RuntimeError, match=r"action.*fit\(data\)"):
        norm(DATA)
    with pytest.raises(RuntimeError, match="action"):
        norm.inverse(DATA)
    fitted = Normalizer(3, kind="minmax", feature="action")
    fitted.fit(DATA)
    norm.load_state_dict(fitted.state_dict())
    assert torch.equal(norm(DATA), fitted(DATA))


def test_a_wrong_size_names_the_feature_and_both_sizes():
    norm = Normalizer(3, kind="gaussian", feature="obs")
    norm.fit(DATA)
    for call in (norm, norm.inverse, norm.fit):
        with pytest.raises(ValueError, match="obs has 4 dimensions, its normalizer has 3"):
            call(torch.zeros(2, 4))


def test_broken_data_is_refused_and_leaves_the_statistics_alone():
    norm = Normalizer(2, kind="gaussian", feature="obs")
    with pytest.raises(ValueError, match=r"dimensions \[1\]"):
        norm.fit(torch.tensor([[0.0, float("nan")], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="no rows"):
        norm.fit(torch.zeros(0, 2))
    assert not norm.ready and norm.shift.tolist() == [0, 0]


def test_what_lies_further_out_than_the_reach_counts_as_lying_there(caplog):
    data = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    data[0, 1] = 900.0
    norm = Normalizer(2, kind="gaussian", feature="obs", reach=5.0)
    norm.fit(data)
    assert "obs: dimensions [1] go further than 5 scales, and count as that there" in caplog.text
    x = torch.tensor([[0.3, -7e4], [-40.0, 0.0]], requires_grad=True)
    out, far = norm(x), norm.scaled(x)
    assert out[0, 0] == far[0, 0] and out[1, 1] == far[1, 1]
    assert out[0, 1] == -5 and out[1, 0] == -5 and far[0, 1] < -1000 and far[1, 0] < -30
    out.sum().backward()
    assert x.grad is not None and (x.grad != 0).tolist() == [[True, False], [False, True]]
    caplog.clear()
    open_ended = Normalizer(2, kind="gaussian")
    open_ended.fit(data)
    assert open_ended(x)[0, 1] < -1000 and caplog.text == ""


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="none, minmax or gaussian"):
        Normalizer(2, kind="zscore")  # type: ignore[arg-type]
