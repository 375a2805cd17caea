"""Signs that nothing is learned: told where they hold for long, and nowhere else."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rheo.envs.batch import Batch
from rheo.scripts.assemble import Sizes, make_algo
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.health import MIN, SIGNS, Health

SAC = ["algo=sac", "env=inverted_pendulum", "policy.width=16", "critic.width=16"]


def algorithm(*more: str) -> Any:
    return make_algo(compose([*SAC, *more]), Sizes(3, 2), 100)


def batches(seed: int = 0, gamma: float = 0.9, reward: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    while True:
        obs, after = (torch.randn(32, 3, generator=generator) for _ in range(2))
        action = 2 * torch.rand(32, 1, 2, generator=generator) - 1
        paid = reward * obs[:, 0] + obs[:, 1]
        yield Batch(obs, action, paid, torch.full((32,), gamma), after)


def looked(algo: Any, looks: int, *, spoil: Any = None, **how: Any) -> list[dict[str, float]]:
    """What every look tells of an algorithm that learns."""
    health, source, found = Health(algo, object()), batches(**how), []
    batch, row = next(source), {}
    for _ in range(looks):
        for _ in range(MIN):
            batch = next(source)
            row = algo.update(batch)
            if spoil is not None:
                spoil(algo)
        found.append(health.look(batch, row))
    return found


def test_nothing_is_told_of_a_run_that_learns() -> None:
    assert looked(algorithm(), 60) == [{}] * 60


def test_nothing_is_looked_at_before_there_were_enough_updates() -> None:
    algo, source = algorithm(), batches()
    health = Health(algo, object())
    batch, row = next(source), {}
    for _ in range(MIN - 1):
        batch = next(source)
        row = algo.update(batch)
    health.look(batch, row)
    assert health.seen["steps"] == {}


def of(name: str, found: list[dict[str, float]]) -> list[bool]:
    return [f"health/{name}" in look for look in found]


def after(looks: int, of_all: int) -> list[bool]:
    return [False] * (looks - 1) + [True] * (of_all - looks + 1)


def test_a_policy_whose_actions_lie_on_their_bounds_is_told(caplog: Any) -> None:
    logging.getLogger("rheo").propagate = True
    algo = algorithm()

    def spoil(algo: Any) -> None:
        with torch.no_grad():
            list(algo.policy.parameters())[-1][:2].fill_(100.0)  # means far outside

    assert of("saturated", looked(algo, 6, spoil=spoil)) == after(3, 6)
    assert "100% of its actions on their bounds" in caplog.text


def test_optimisers_that_move_nothing_are_named(caplog: Any) -> None:
    logging.getLogger("rheo").propagate = True
    found = looked(algorithm("algo.policy_lr=1e-30"), 6)
    assert of("still", found) == after(SIGNS["still"].looks + 1, 6)
    assert "policy_opt: weights do not move" in caplog.text
    assert "critic_opt" not in caplog.text


def test_a_loss_that_is_always_the_same_is_named(caplog: Any) -> None:
    logging.getLogger("rheo").propagate = True
    algo = algorithm()
    update = algo.update
    algo.update = lambda batch: update(batch) | {"policy/loss": torch.tensor(0.25)}
    assert of("constant", looked(algo, 8)) == after(SIGNS["constant"].looks + 1, 8)
    assert "policy/loss: a loss is the same" in caplog.text


def test_a_critic_that_explains_nothing_is_told_after_a_long_time() -> None:
    def forget(algo: Any) -> None:
        with torch.no_grad():
            for p in algo.critic.parameters():
                p.mul_(0.0)

    found = of("blind", looked(algorithm(), 60, spoil=forget, reward=10.0))
    assert not any(found[:20]) and found[-1]


def test_a_value_on_policy_that_explains_nothing_is_told_where_rewards_tell() -> None:
    def row(explained: float, tells: float) -> dict[str, Any]:
        return {"critic/explained_variance": explained, "rollout/tells": torch.tensor(tells)}

    for explained, tells, told in ((-3.0, 1.0, True), (0.5, 1.0, False), (-3.0, 0.0, False)):
        algo, source, found = algorithm(), batches(gamma=1.0), {}
        del algo.critic
        health = Health(algo, object())
        batch = next(source)
        for count in range(60):
            for state in algo.policy_opt.state.values():
                state["step"] += MIN
            found = health.look(batch, row(explained, tells))
            for p in algo.policy.parameters():
                p.data += 1e-3
                algo.policy_opt.state[p]["step"] = torch.tensor(float(MIN * (count + 1)))
        assert ("health/blind" in found) is told


def test_values_beyond_what_rewards_sum_to_are_told() -> None:
    def raise_values(algo: Any) -> None:
        with torch.no_grad():
            list(algo.critic.parameters())[-1].fill_(500.0)

    assert of("beyond", looked(algorithm(), 6, spoil=raise_values)) == after(3, 6)
    assert not any(of("beyond", looked(algorithm(), 6, spoil=raise_values, gamma=0.999)))
    assert not any(of("beyond", looked(algorithm(), 6, spoil=raise_values, gamma=1.0)))


def test_data_that_lie_on_their_bounds_may_be_cloned() -> None:
    algo = algorithm()
    policy = algo.policy

    class Source:
        replay = None

    health = Health(algo, Source())
    obs = torch.randn(32, 3)
    edge = Batch(obs, torch.ones(32, 1, 2), obs[:, 0], obs[:, 0], obs)
    with torch.no_grad():
        list(policy.parameters())[-1][:2].fill_(100.0)
    assert health.saturated(edge) == ""
    assert health.saturated(edge._replace(action=torch.zeros(32, 1, 2))) != ""


def rows(name: str) -> list[dict[str, Any]]:
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_policy_that_saturates_is_told_in_a_run_and_when_it_goes_on(
    tiny: Any, capsys: Any
) -> None:
    words = tiny("sac", "a", "algo.policy_lr=1e4")
    assert main(["train", *words]) == 0
    error = capsys.readouterr().err
    assert "algo.policy_lr=10000: every step moves every weight by about 10000" in error
    assert error.count("its actions on their bounds: all actions of the policy") == 1
    assert [row["step"] for row in rows("a") if row.get("health/saturated")][-1] == 200
    assert main(["resume", "a", "steps=240"]) == 0
    assert "on their bounds" not in capsys.readouterr().err  # it was said
    assert [row["step"] for row in rows("a") if row.get("health/saturated")][-1] == 240


def test_rates_at_which_nothing_is_learned_are_told_at_once(tiny: Any, capsys: Any) -> None:
    assert main(["train", *tiny("sac", "a", "algo.critic_lr=1", "algo.target_rate=1")]) == 0
    assert "algo.critic_lr=1: every step moves every weight" in capsys.readouterr().err


@pytest.mark.parametrize("algo", ["sac", "rfm", "ppo", "iql", "bc"])
def test_small_runs_as_they_ship_are_told_nothing(tiny: Any, algo: str, capsys: Any) -> None:
    more = ["steps=600", "log_every=20", "eval_every=600", "save_every=600"]
    assert main(["train", *tiny(algo, "a", *more)]) == 0
    assert "health/" not in capsys.readouterr().err
    assert not [key for row in rows("a") for key in row if key.startswith("health/")]
