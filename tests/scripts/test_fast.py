"""Precision and compilation put on from outside."""

import pytest
import torch

from rheo.errors import RheoError
from rheo.scripts import fast
from rheo.scripts.assemble import assemble
from rheo.scripts.config.compose import compose
from rheo.scripts.loop import Loop
from rheo.scripts.stopping import Stop
from rheo.scripts.store.run import Run


class Algo:
    """Records the precision that its calls see."""

    pure = ("loss",)

    def __init__(self):
        self.generator, self.seen = torch.Generator(), []

    def update(self, batch):
        self.seen.append(torch.get_float32_matmul_precision())
        return {"x": batch}

    def deploy(self, obs, generator):
        self.seen.append(torch.get_float32_matmul_precision())
        return obs

    @staticmethod
    def loss(x):
        return x.square().sum()


@pytest.fixture(autouse=True)
def usual():
    yield
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_flush_denormal(False)


@pytest.mark.parametrize(("exact", "seen"), [(True, "medium"), (False, "highest")])
def test_the_faster_product_is_used_only_where_it_is_exact(monkeypatch, exact, seen):
    monkeypatch.setattr(fast, "medium_is_exact", lambda: exact)
    algo = Algo()
    assert fast.fast(algo, "precision")(3) == {"x": 3} and algo.seen == [seen]


def test_the_precision_is_put_back_also_after_an_error():
    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fast.with_precision(fails, "medium")()
    assert torch.get_float32_matmul_precision() == "highest"


def test_off_changes_nothing(monkeypatch):
    monkeypatch.setattr(fast, "medium_is_exact", lambda: True)
    algo = Algo()
    fast.fast(algo, "off")(3)
    fast.fast_deploy(algo, "off", 64)(3, None)
    assert algo.seen == ["highest", "highest"]


def test_deployment_uses_the_faster_product_from_eight_rows_on(monkeypatch):
    monkeypatch.setattr(fast, "medium_is_exact", lambda: True)
    algo = Algo()
    for rows in (1, 7, 8, 64):
        fast.fast_deploy(algo, "precision", rows)(0, None)
    assert algo.seen == ["highest", "highest", "medium", "medium"]


def test_the_measured_error_is_that_of_this_machine():
    """The check must agree with an independent measurement in float64."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(300, 300, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    with fast.precision("medium"):
        error = float(((a @ b).double() - exact).abs().max() / exact.abs().max())
    assert fast.medium_is_exact() == (error < fast.MAX_RELATIVE_ERROR)
    assert 0.1 < fast.medium_error() / max(error, 1e-12) < 10
    assert fast.medium_error.cache_info().currsize == 1


@pytest.mark.parametrize(("value", "mode"), [(False, "off"), (True, "precision"), ("off", "off")])
def test_a_bare_off_of_yaml_is_understood(value, mode):
    assert fast.mode_of(value) == mode


def test_unknown_modes_are_refused():
    with pytest.raises(RheoError, match="fast=warp: must be one of off, precision, compile"):
        fast.fast(Algo(), "warp")


def test_tiny_numbers_are_flushed_in_training_and_evaluation_alike():
    tiny = torch.tensor([1e-39])
    fast.settle("off")
    assert float(tiny * 1.0) > 0
    fast.settle("precision")
    assert float(tiny * 1.0) == 0


def test_compilation_covers_the_pure_functions_alone():
    algo = Algo()
    fast.fast(algo, "compile")
    assert getattr(algo.loss, "_torchdynamo_orig_callable", None) is Algo.loss
    assert set(vars(algo)) == {"generator", "seen", "loss"}


def test_rollouts_are_sampled_on_one_thread_and_learned_on_all(tiny):
    torch.set_num_threads(2)
    try:
        with fast.one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        config = compose(tiny("ppo", "r", "threads=2", "steps=60"))
        with Run.create("r", config) as run:
            loop, seen = Loop(run, assemble(config), Stop()), []
            loop.algo.act = watched(loop.algo.act, seen)
            watch = loop.breaking.watch
            watch.update = watched(watch.update, seen)
            assert loop.finish() == 0
        assert set(seen[:16]) == {1} and seen[16] == 2  # 16 decisions, then the update
    finally:
        torch.set_num_threads(1)


def watched(call, seen):
    """The call, which notes torch's threads."""

    def run(*words):
        seen.append(torch.get_num_threads())
        return call(*words)

    return run
