"""What a steered chain leaves out of what a run deploys is said."""

import logging

import pytest
import torch

from rheo.scripts.assemble import Sizes, make_algo
from rheo.scripts.config.compose import compose
from rheo.scripts.evaluate import steered

NET = ["policy.net.width=8", "policy.net.depth=1", "policy.steps=3", "critic.width=8"]


def made(*words):
    """An algorithm of four observations and one action."""
    return make_algo(compose(["env=inverted_pendulum", *NET, *words]), Sizes(4, 1), 10)


@pytest.mark.parametrize("algo", ["qsm", "dpmd"])
def test_a_steered_chain_says_that_it_leaves_out_the_noise_of_the_steps(caplog, algo):
    agent = made(f"algo={algo}", "policy.levels=3")
    with caplog.at_level(logging.WARNING, "rheo"):
        chain = steered(agent, {"steer": "best", "steer.n": "4"}, 1)
    assert "steer=best: the run's own actions have the noise of its steps (policy.eta=1)" in (
        caplog.text
    )
    assert chain.deploy(torch.zeros(2, 4), torch.Generator()).shape == (2, 1, 1)


@pytest.mark.parametrize(
    ("algo", "steer"), [("qsm", "svdd"), ("fpmd", "best"), ("rfm", "best"), ("qsm,eta", "best")]
)
def test_what_has_no_such_noise_or_keeps_it_says_nothing(caplog, algo, steer):
    name, _, quiet = algo.partition(",")
    words = ["policy.levels=3"] if name == "qsm" else []
    agent = made(f"algo={name}", *words, *["policy.eta=0"] * bool(quiet))
    with caplog.at_level(logging.WARNING, "rheo"):
        steered(agent, {"steer": steer}, 1)
    assert "noise of its steps" not in caplog.text


@pytest.mark.parametrize("algo", ["dsrl_na", "expo", "rfs"])
def test_a_steered_chain_says_that_it_is_of_the_base_alone(caplog, algo):
    agent = made(f"algo={algo}", "init=scratch")
    with caplog.at_level(logging.WARNING, "rheo"):
        steered(agent, {"steer": "best"}, 1)
    assert f"what the run deploys is {agent.beyond}; this is its base alone" in caplog.text
