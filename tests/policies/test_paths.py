"""Paths, conversions between predictions, grids."""

import math

import pytest
import torch

from rheo.policies import paths

ALL = [("linear", None), ("cosine", None), ("betas", 40)]
F64 = torch.float64


def test_cosine_and_linear_coefficients_have_the_documented_values():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=F64)
    linear, cosine = paths.Linear().coefficients(t), paths.Cosine().coefficients(t)
    assert torch.equal(linear.a, t) and torch.equal(linear.b, 1 - t)
    expected = torch.tensor([0, math.sin(math.pi / 8), 1], dtype=F64)
    torch.testing.assert_close(cosine.a, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(cosine.det, torch.full((3,), -math.pi / 2, dtype=F64))


@pytest.mark.parametrize("name,levels", ALL)
def test_derivatives_of_the_coefficients_are_their_slopes(name, levels):
    path = paths.make_path(name, levels)
    t, h = torch.tensor([0.113, 0.507, 0.94], dtype=F64), 1e-6
    now, later, sooner = (path.coefficients(t + d) for d in (0, h, -h))
    torch.testing.assert_close(now.da, (later.a - sooner.a) / (2 * h), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(now.db, (later.b - sooner.b) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name,levels", ALL)
@pytest.mark.parametrize("kind", ["v", "eps", "a"])
def test_every_prediction_converts_to_all_forms_and_back(kind, name, levels, dtype, tolerance):
    """0.T2."""
    path = paths.make_path(name, levels)
    generator = torch.Generator().manual_seed(0)
    a, eps = torch.randn(2, 3, 2, 5, generator=generator, dtype=F64).to(dtype)
    c = path.coefficients(torch.tensor([0.03, 0.5, 0.97], dtype=dtype)).over_chunk()
    x = c.a * a + c.b * eps
    true = paths.Pred(c.da * a + c.db * eps, a, eps, -eps / c.b)
    got = paths.convert(kind, getattr(true, kind), x, c, path.floor)
    for mine, expected in zip(got, true, strict=True):
        scale = 1 + expected.abs().max()
        assert (mine - expected).abs().max() / scale < tolerance
    alone = paths.velocity(kind, getattr(true, kind), x, c, path.floor)
    assert (alone - true.v).abs().max() / (1 + true.v.abs().max()) < tolerance


def test_cosine_velocity_is_the_scaled_salimans_ho_target():
    path, t = paths.Cosine(), torch.tensor([0.3], dtype=F64)
    c = path.coefficients(t)
    a, eps = 0.7, -1.3
    torch.testing.assert_close(c.da * a + c.db * eps, -math.pi / 2 * (c.a * eps - c.b * a))


@pytest.mark.parametrize("name,levels", ALL)
@pytest.mark.parametrize("kind", ["v", "eps", "a"])
def test_conversions_stay_finite_at_both_ends(kind, name, levels):
    path = paths.make_path(name, levels)
    c = path.coefficients(torch.tensor([0.0, 1.0])).over_chunk()
    value = torch.ones(2, 1, 1)
    for form in paths.convert(kind, value, value, c, path.floor):
        assert form.isfinite().all()


def test_beta_levels_equal_the_cumulative_product_even_where_betas_were_clipped():
    betas = paths.cosine_betas(20)
    assert betas.max() == 0.999
    path = paths.Betas(betas)
    abar = torch.cumprod(1 - betas, 0)
    for k in (1, 7, 20):
        t = torch.tensor(1 - k / 20)  # float32: 1 - k / 20 is rounded
        torch.testing.assert_close(path.coefficients(t).a.double() ** 2, abar[k - 1], rtol=1e-6,
                                   atol=0)  # fmt: skip
    between = path.coefficients(torch.tensor([0.333], dtype=F64))
    torch.testing.assert_close(between.a**2 + between.b**2, torch.ones(1, dtype=F64))


@pytest.mark.parametrize("levels", [5, 20])
def test_the_vp_table_is_the_integral_of_its_rate_and_leaves_the_action_visible(levels):
    """A^2 = exp(-int_0^u (.1 + 9.9 u) du) at u = k / T, so A = .080 at the noisiest level."""
    path = paths.make_path("betas", levels, "vp")
    u = torch.arange(levels + 1, dtype=F64) / levels
    expected = (-(0.1 * u + 4.95 * u.square()) / 2).exp()
    torch.testing.assert_close(path.coefficients(1 - u).a, expected, rtol=1e-9, atol=1e-12)
    assert path.coefficients(torch.zeros(1)).a.item() == pytest.approx(0.0801, abs=1e-4)
    narrow = paths.make_path("betas", levels).coefficients(torch.zeros(1, dtype=F64)).a
    assert narrow.item() == pytest.approx({5: 0.0097, 20: 0.0025}[levels], abs=1e-4)


def test_grids_run_from_noise_to_data_and_betas_stay_on_levels():
    for name, levels in ALL:
        grid = paths.make_path(name, levels).times(7)
        assert grid.shape == (8,) and grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()
    on_levels = paths.make_path("betas", 40).times(7).double() * 40
    torch.testing.assert_close(on_levels, on_levels.round(), rtol=0, atol=1e-5)


def test_bad_paths_say_what_to_change():
    with pytest.raises(ValueError, match="levels"):
        paths.make_path("linear", 20)
    with pytest.raises(ValueError, match="levels"):
        paths.make_path("betas")
    with pytest.raises(ValueError, match="choose cosine or vp"):
        paths.make_path("betas", 5, "linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="betas='vp' with path='linear'"):
        paths.make_path("linear", betas="vp")
    with pytest.raises(ValueError, match="20 noise levels"):
        paths.make_path("betas", 20).times(21)
    with pytest.raises(ValueError, match="at least one"):
        paths.Linear().times(0)
    with pytest.raises(ValueError, match=r"\(0, 1\)"):
        paths.Betas(torch.tensor([0.1, 1.0]))
