"""A run's policy in other programs' rollouts: the episodes of its evaluation, bit for bit."""

from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

from rheo.envs.noise import TILE
from rheo.envs.rollout import evaluate
from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.config.top import EVAL_SEED
from rheo.scripts.evaluate import made
from rheo.scripts.fast import fast_deploy
from rheo.scripts.rollout_policy import RolloutPolicy
from rheo.scripts.store.run import Run

SMALL = ("policy.net.width=16", "policy.net.depth=1", "source.batch_size=8")
SHORT = ("steps=20", "log_every=10", "eval_every=20", "save_every=20", "episodes=1")


@pytest.fixture
def cloned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A flow of chunks and histories, cloned in InvertedPendulum, whose actions reach 3."""
    monkeypatch.chdir(tmp_path)
    place = ("env=inverted_pendulum", "env.num_envs=2")
    assert main(["collect", "random", place[0], "steps=300", "out=a.npz"]) == 0
    how = ("horizon=4", "env.execute=3", "env.obs_steps=2", "env.backend=gymnasium")
    assert main(["train", "algo=bc", "data=a.npz", *place, *how, *SMALL, *SHORT, "name=r"]) == 0
    return "r"


def rollouts(policy: RolloutPolicy, episodes: int) -> list[tuple[float, int]]:
    """Returns and lengths in gymnasium's own environment."""
    env, found = gymnasium.make("InvertedPendulum-v5"), []
    for i in range(episodes):
        obs, _ = env.reset(seed=EVAL_SEED if i == 0 else None)
        policy.start_episode()
        total, steps, over = 0.0, 0, False
        while not over:
            action = policy(ob={"flat": obs, "unknown": np.zeros(9)})
            obs, reward, ended, cut, _ = env.step(action.astype(np.float32))
            total, steps, over = total + float(reward), steps + 1, ended or cut
        found.append((total, steps))
    return found


def test_its_episodes_are_those_of_the_evaluation(cloned: str) -> None:
    run = Run.open(cloned)
    algo, env = made(run, 1)
    deploy = fast_deploy(algo, run.config["fast"], TILE)
    rows = evaluate(env, deploy, 4, EVAL_SEED, on_end=algo.ended)  # all of the first environment
    policy = RolloutPolicy(cloned)
    assert policy.execute == 3 and policy.action_high.item() == 3
    assert rollouts(policy, 4) == [(row.ret, row.length) for row in rows]
    assert len({row.length for row in rows}) > 1


def test_a_new_plan_is_made_where_the_executed_steps_are_used_up(cloned: str) -> None:
    first, every = RolloutPolicy(cloned), RolloutPolicy(cloned, execute=1)
    for policy in (first, every):
        policy.start_episode()
    actions = [[policy({"flat": np.full(4, 0.1)}) for _ in range(4)] for policy in (first, every)]
    assert np.array_equal(actions[0][0], actions[1][0])
    assert not np.array_equal(actions[0][1], actions[1][1])
    assert first.used.item() == 1  # of the second plan


@pytest.mark.parametrize(
    ("ob", "message"),
    [
        ({"flatt": np.zeros(4)}, "no 'flat' in the observation; did you mean 'flatt'"),
        ({"flat": np.zeros(3)}, r"flat: \(3,\), and the policy reads 4 numbers"),
    ],
)
def test_an_observation_that_does_not_fit_is_named(
    cloned: str, ob: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutPolicy(cloned)(ob)
    with pytest.raises(RheoError, match="execute=9: plans have 4 steps; give 1 to 4"):
        RolloutPolicy(cloned, execute=9)


def test_parts_are_put_in_the_order_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with h5py.File("a.hdf5", "w") as file:
        for i in range(3):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (9, 2))
            demo["obs/hand"], demo["obs/box"] = rng.normal(size=(9, 3)), rng.normal(size=(9, 1))
    words = ["data.obs_keys=[hand,box]", *SMALL, *SHORT, "horizon=1", "name=r"]
    assert main(["train", "algo=bc", "data=a.hdf5", *words]) == 0
    policy = RolloutPolicy("r")
    assert policy.obs_parts == {"hand": 3, "box": 1}
    rows, single, _ = policy.rows({"box": [4.0], "hand": [1, 2, 3]})
    assert rows.tolist() == [[1, 2, 3, 4]] and single
    assert policy({"box": [4.0], "hand": [1, 2, 3]}).shape == (2,)
