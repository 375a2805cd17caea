"""What a class may leave out, and the two ways in which a method changes the world."""

import inspect
from types import SimpleNamespace
from typing import Any

import torch

from rheo.algos.contract import Algorithm, completed
from rheo.algos.resip import ResiP
from rheo.algos.sac import SAC
from rheo.envs.residual_env import Residual
from rheo.envs.suites import chunked


class Own:
    """A user's algorithm that inherits from nothing."""

    learned = {"weight": None}

    def __init__(self, policy, generator, *, lr: float):
        self.policy, self.generator, self.lr = policy, generator, lr
        self.average = "average"

    def deploy(self, obs, generator):
        return obs

    def memo(self):
        return 3


def own() -> Any:
    """One of them, as the programs see it."""
    algo = Own("policy", torch.Generator(), lr=1.0)
    algo.__class__ = completed(Own)
    return algo


def test_a_class_of_ones_own_keeps_what_it_says_and_gets_the_rest():
    algo, kind = own(), completed(Own)
    assert Own in type(algo).__mro__ and Algorithm in type(algo).__mro__
    assert kind.__name__ == "Own" and inspect.signature(kind) == inspect.signature(Own)
    assert algo.learned == {"weight": None} and algo.deploy("obs", None) == "obs"
    assert algo.memo() == 3 and algo.lr == 1.0
    assert (algo.pure, algo.anchors, algo.beyond, algo.memo_rows) == ((), (), None, 0)
    assert algo.validate(None, algo.generator) == {} and kind.upgrade({"a": 1}) == {"a": 1}
    assert (algo.deployed(), algo.action_critic(), algo.deploy_one()) == ("average", None, 1)
    assert algo.wrap("env", 0) == "env" and algo.before_training(None) == {}


def test_a_class_that_inherits_is_left_as_it_is():
    assert completed(SAC) is SAC


def test_a_corrected_base_is_put_into_the_environment():
    env = chunked(
        id="InvertedPendulum-v5", num_envs=2, execute=2, options={}, backend="gymnasium",
        threads=1, obs_steps=1, gamma=0.99, workers=0, step_timeout=9.0, restarts=0, randomise={},
        cost={},
    )  # fmt: skip
    assert env is not None
    plan = lambda obs, generator: torch.full((len(obs), 2, 1), 0.5)  # noqa: E731
    algo = SimpleNamespace(generator=torch.Generator(), plan=plan, residual_scale=0.1)
    wrapped = ResiP.wrap(algo, env, 7)  # pyright: ignore[reportArgumentType]
    assert isinstance(wrapped, Residual)
    assert (wrapped.scale, wrapped.generator.initial_seed()) == (0.1, 7)
    assert wrapped.reset(0)[:, env.obs_dim].tolist() == [0.5, 0.5]
