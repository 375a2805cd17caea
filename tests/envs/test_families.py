"""Environments of optional packages: Adroit, Fetch, hands, mazes, OGBench, PushT."""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from rheo.envs import families, packages
from rheo.envs.chunk import ChunkEnv
from rheo.envs.mujoco import native, physics
from rheo.envs.parts import GOAL_KEYS
from rheo.envs.rollout import evaluate, summary
from rheo.envs.scores import normalized_score
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv
from rheo.errors import EnvError
from rheo.scripts.cli import main

DATA = Path(os.environ.get("RHEO_DATA", Path(__file__).parents[3] / "shared" / "data"))
FAMILIES = {  # id: observation, actions, time limit
    "AdroitHandDoor-v1": (39, 28, 200),
    "AdroitHandHammer-v1": (46, 26, 200),
    "AdroitHandPen-v1": (45, 24, 200),
    "AdroitHandRelocate-v1": (39, 30, 200),
    "FetchReach-v4": (13, 4, 50),
    "FetchPickAndPlaceDense-v4": (28, 4, 50),
    "HandReach-v3": (78, 20, 50),
    "HandManipulateBlock-v1": (68, 20, 100),
    "PointMaze_UMaze-v3": (6, 2, 300),
    "PointMaze_Medium-v3": (6, 2, 600),
    "PointMaze_Large-v3": (6, 2, 800),
    "AntMaze_UMaze-v5": (109, 8, 700),
    "AntMaze_Medium-v4": (31, 8, 1000),
    "antmaze-large-navigate-singletask-v0": (29, 8, 1000),
    "pointmaze-medium-navigate-singletask-task2-v0": (2, 2, 1000),
    "cube-single-play-singletask-v0": (28, 5, 200),
    "puzzle-3x3-play-singletask-v0": (55, 5, 500),
    "scene-play-singletask-v0": (40, 5, 750),
    "gym_pusht/PushT-v0": (5, 2, 300),
}
SLOW = ("cube", "puzzle", "scene")  # seconds to build
EXACT = [  # whole state of the task is known
    *("AdroitHandDoor-v1", "AdroitHandHammer-v1", "AdroitHandPen-v1", "AdroitHandRelocate-v1"),
    *("PointMaze_UMaze-v3", "AntMaze_UMaze-v5", "antmaze-teleport-navigate-singletask-v0"),
]


def needs(env_id: str) -> str:
    """The id, or the test is skipped where its package is not installed."""
    module, package = packages.home(env_id)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed")
    return env_id


def same(one: Any, two: Any) -> bool:
    """Whether two records of tensors are equal to the last bit; None is only equal to None."""
    return all(a is b or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def plan(env: VectorEnv, steps: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(steps, env.num_envs, env.action_dim, generator=generator) * 2 - 1


@pytest.mark.parametrize("env_id", FAMILIES)
def test_every_family_fits_the_contract(env_id: str) -> None:
    count = 1 if env_id.startswith(SLOW) else 2
    env = make(needs(env_id), count, seed=0)
    assert (env.obs_dim, env.action_dim, env.max_steps) == FAMILIES[env_id]
    batched = env_id in native.TASKS and physics.available()
    assert (env.id, env.backend) == (env_id, "native" if batched else "gymnasium")
    obs = env.reset()
    assert obs.shape == (count, env.obs_dim)
    steps = [env.step(action) for action in plan(env, 12)]
    for step in steps:
        assert step.obs.isfinite().all()
        assert step.reward.isfinite().all()
        assert step.valid.all()
        assert step.success is not None
        assert step.success.dtype == torch.bool
        assert step.success.shape == (count,)
    assert not torch.equal(steps[-1].final_obs, obs)
    env.close()


@pytest.mark.parametrize("env_id", [name for name in FAMILIES if not name.startswith("scene")])
def test_the_same_seed_gives_the_same_trajectory_whatever_others_draw(env_id: str) -> None:
    count = 1 if env_id.startswith(SLOW) else 2
    envs = [make(needs(env_id), count, max_episode_steps=5, dtype=torch.float64) for _ in range(2)]
    runs = []
    for noise, env in enumerate(envs):
        np.random.seed(noise)  # OGBench draws from numpy's global generator
        seen = [env.reset(7)]
        for action in plan(env, 8):
            np.random.random(noise)
            step = env.step(action)
            seen += [step.obs, step.final_obs, step.reward]
        runs.append(seen)
    following = np.random.random()
    assert same(*runs)
    assert count == 1 or not torch.equal(*runs[0][0])  # every environment has its own seed
    np.random.seed(1)
    assert following == np.random.random(9)[-1]  # the global generator was left alone
    for env in envs:
        env.close()


@pytest.mark.parametrize("env_id", EXACT)
def test_a_saved_task_continues_bit_for_bit(env_id: str) -> None:
    kind: dict[str, Any] = {"backend": "gymnasium", "max_episode_steps": 9}
    env = make(needs(env_id), 2, seed=4, **kind)
    env.reset()
    actions = plan(env, 40)
    for action in actions[:14]:
        env.step(action)
    saved = env.state_dict()
    assert saved["exact"] is True
    straight = [env.step(action) for action in actions[14:]]
    other = make(env_id, 2, seed=99, **kind)
    other.reset()
    other.step(actions[0])
    other.load_state_dict(saved)
    resumed = [other.step(action) for action in actions[14:]]
    for one, two in zip(straight, resumed, strict=True):
        assert same(one, two)
    env.close()
    other.close()


@pytest.mark.parametrize("env_id", ["cube-single-play-singletask-v0", "gym_pusht/PushT-v0"])
def test_a_task_that_cannot_be_saved_starts_the_same_new_episodes_after_every_load(
    env_id: str,
) -> None:
    env = make(needs(env_id), 1, seed=4)
    env.reset()
    env.step(torch.zeros(1, env.action_dim))
    saved = env.state_dict()
    assert saved["exact"] is False
    starts = []
    for _ in range(2):
        env.load_state_dict(saved)
        starts.append(env.step(torch.zeros(1, env.action_dim)).final_obs)
    assert torch.equal(*starts)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "keys"),
    [
        ("PointMaze_Medium-v3", ["observation", "desired_goal"]),
        ("AntMaze_UMaze-v4", ["achieved_goal", "observation", "desired_goal"]),
        ("AntMaze_UMaze-v5", ["achieved_goal", "observation", "desired_goal"]),
    ],
)
def test_a_goal_observation_is_flattened_in_the_promised_order(env_id: str, keys: Any) -> None:
    env = make(needs(env_id), 1, seed=3, dtype=torch.float64)
    plain = gymnasium.make(env_id, disable_env_checker=True)
    expected, _ = plain.reset(seed=3)
    obs = env.reset()
    for action in plan(env, 6):
        flat = [value for key in keys for value in expected[key].tolist()]
        assert obs[0].tolist() == flat
        obs = env.step(action.double()).final_obs
        expected = plain.step(action[0].numpy())[0]
        text = ",".join(map(repr, expected["observation"].tolist()))
        goal = ",".join(map(repr, expected["achieved_goal"].tolist()))
        assert (goal in text) == ("achieved_goal" not in keys)  # left out only where repeated
    env.close()
    plain.close()


def test_an_unknown_goal_environment_loses_nothing() -> None:
    box = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    space = gymnasium.spaces.Dict(dict.fromkeys(GOAL_KEYS, box))
    assert make("RheoSpaces-v0", 1, observation=space, action=box).obs_dim == 6


def test_the_door_observation_is_the_one_of_the_recordings() -> None:
    """A recording replayed from its stored state: the same numbers in the same places."""
    file = DATA / "adroit_door_human.npz"
    if not file.is_file():
        pytest.skip(f"no recordings at {file}")
    needs("AdroitHandDoor-v1")
    record = np.load(file)
    families.register("AdroitHandDoor-v1")
    env = families.make("AdroitHandDoor-v1", {})
    state = {"qpos": record["init_qpos"][0], "qvel": record["init_qvel"][0]}
    state["door_body_pos"] = record["init_door_body_pos"][0]
    env.reset(seed=0, options={"initial_state_dict": state})
    seen = [env.step(action)[0] for action in record["actions"][:40]]
    error = np.abs(np.stack(seen)[:-1] - record["observations"][1:40])
    assert error.shape == (39, 39)
    assert np.median(error) < 1e-3  # the physics is another version's; a shift by one gives 4e-3
    env.close()


class Expert:
    """The door actor of hand_dapg: two tanh layers around fixed scalings."""

    def __init__(self, file: Path) -> None:
        self.part = dict(np.load(file).items())

    def __call__(self, obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        p = self.part
        x = (obs.numpy() - p["in_shift"]) / (p["in_scale"] + 1e-8)
        for layer in ("0", "1"):
            x = np.tanh(x @ p[f"w{layer}"].T + p[f"b{layer}"])
        action = (x @ p["w2"].T + p["b2"]) * p["out_scale"] + p["out_shift"]
        return torch.from_numpy(action[:, None])


def test_a_trained_actor_opens_the_door_and_scores_like_an_expert() -> None:
    file = DATA / "experts" / "adroit_door_dapg.npz"
    if not file.is_file():
        pytest.skip(f"no actor at {file}")
    env = make(needs("AdroitHandDoor-v1"), 5)
    rows = evaluate(ChunkEnv(env, execute=1, obs_steps=1, gamma=0.99), Expert(file), 5, seed=0)
    figures = summary(rows)
    assert figures["eval/success_once"] == figures["eval/success_at_end"] == 1.0
    assert figures["eval/success_once_low"] == pytest.approx(0.5655, abs=1e-4)  # n / (n + z^2)
    assert 2850 < figures["eval/return"] < 3150
    score = normalized_score("AdroitHandDoor-v1", figures["eval/return"])
    assert score is not None
    assert 98 < score < 110
    env.close()


def test_the_largest_action_reaches_the_ends_of_the_pushing_board() -> None:
    env = make(needs("gym_pusht/PushT-v0"), 1, seed=0)
    assert (env.action_low.tolist(), env.action_high.tolist()) == ([0, 0], [512, 512])
    corners = []
    for corner in (-1.0, 1.0):
        env.reset(0)
        steps = [env.step(torch.full((1, 2), corner)) for _ in range(25)]
        corners.append(steps[-1].final_obs[0, :2])
    assert corners[0].max() < 60
    assert corners[1].min() > 450


def test_ogbench_names_with_and_without_the_kind_of_data_are_one_environment() -> None:
    names = ("antmaze-medium-navigate-singletask-task3-v0", "antmaze-medium-singletask-task3-v0")
    envs = [make(needs(name), 1, seed=1) for name in names]
    starts = [env.reset() for env in envs]
    assert torch.equal(*starts)
    action = plan(envs[0], 1)[0]
    assert torch.equal(*(env.step(action).obs for env in envs))
    for env in envs:
        env.close()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("antmaze-large-navigate-v0", "antmaze-large-navigate-singletask-v0"),
        ("cube-single-v0", "cube-single-singletask-v0 or cube-single-singletask-task1-v0"),
        ("antmaze-larg-navigate-singletask-v0", "unknown environment 'antmaze-larg-navigate"),
        ("AdroitHandDor-v1", "did you mean 'AdroitHandDoor-v1'"),
    ],
)
def test_a_wrong_name_is_answered_with_a_right_one(env_id: str, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make(needs(env_id), 1)


class Without(importlib.machinery.PathFinder):
    """Python's finder of installed packages, but for some."""

    hidden: tuple[str, ...] = ()

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.partition(".")[0] in cls.hidden:
            return None
        return super().find_spec(fullname, path, target)


@pytest.mark.parametrize(
    ("config", "package"),
    [
        ("env=adroit_door", "gymnasium-robotics"),
        ("env=pointmaze_umaze", "gymnasium-robotics"),
        ("env=pusht", "gym-pusht"),
        ("env=ogbench", "ogbench"),
    ],
)
def test_a_missing_package_is_one_line_with_its_command(
    config: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = package.replace("-", "_")
    monkeypatch.setattr(Without, "hidden", (module,))
    found = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", found)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in gymnasium.registry if packages.home(name)[0] == module]:
        monkeypatch.delitem(gymnasium.registry, name)
    task = ["env.id=cube-single-play-singletask-v0"] if package == "ogbench" else []
    assert main(["train", "algo=sac", config, *task]) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith(packages.pip_install(package))
    assert error.endswith(package) and "pip install" in error
    assert len(error.splitlines()) == 1
