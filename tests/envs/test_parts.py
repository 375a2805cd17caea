"""Observations of several named parts: one order for data and environments, nothing lost unsaid."""

import logging
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from gymnasium.wrappers import FlattenObservation, TransformObservation

from rheo.envs import families
from rheo.envs.chunk import ChunkEnv
from rheo.envs.data.read import read
from rheo.envs.data.writing import write
from rheo.envs.datasets import Dataset
from rheo.envs.dicts import table
from rheo.envs.parts import GOAL_KEYS, LOW_DIM, usual
from rheo.envs.suites import make
from rheo.errors import EnvError
from rheo.scripts.cli import main
from rheo.scripts.store.run import Run

ACTION = Box(-1, 1, (2,), np.float32)
SETTINGS: dict[str, Any] = {
    **{"batch_size": 2, "holdout": 0.0, "obs_steps": 1, "on_bad": "refuse", "storage": "ram"},
    **{"obs_keys": None, "filter": None, "time_limit": None, "action_scale": "auto", "big": False},
}


def box(size: int) -> Box:
    return Box(-9, 9, (size,), np.float32)


def demos(path: Path, count: int = 3, **parts: Any) -> str:
    """A robomimic file; a part is an array, or a number of columns that say (part, demo, step)."""
    with h5py.File(path, "w") as file:
        for i in range(count):
            for j, (key, made) in enumerate(parts.items()):
                if isinstance(made, int):
                    made = 100 * (j + 1) + 10 * i + np.arange(4.0)[:, None] + np.zeros(made)
                file[f"data/demo_{i}/obs/{key}"] = made
            file[f"data/demo_{i}/actions"] = np.full((4, 2), i / 50)
    return str(path)


def world(observation: gymnasium.Space) -> ChunkEnv:
    env = make("RheoSpaces-v0", 1, observation=observation, action=ACTION)
    return ChunkEnv(env, execute=1, obs_steps=1, gamma=0.9)


def dataset(path: str, env: ChunkEnv | None = None, **changes: Any) -> Dataset:
    return Dataset(torch.Generator().manual_seed(0), 1, env, path=path, **SETTINGS | changes)


@pytest.mark.parametrize(
    ("names", "env_id", "order"),
    [
        (["achieved_goal", "desired_goal", "observation"], "AntMaze_UMaze-v4", list(GOAL_KEYS)),
        (["achieved_goal", "desired_goal", "observation"], None, list(GOAL_KEYS)),
        (
            ["observation", "desired_goal", "achieved_goal"],
            "PointMaze_Open-v3",
            list(GOAL_KEYS[1:]),
        ),
        (["object", "joint", *LOW_DIM[:-1]], "Lift", LOW_DIM),
        (["object", "robot0_eef_pos"], "Lift", ["object", "robot0_eef_pos"]),
        (["tip", "aim"], "Own-v0", ["tip", "aim"]),
    ],
)
def test_the_usual_parts_and_their_order(names: list[str], env_id: Any, order: list[str]) -> None:
    assert usual(names, env_id) == order


@pytest.mark.parametrize(
    ("space", "first"),
    [(Dict(tip=box(2), aim=box(2)), "tip"), (Dict({"tip": box(2), "aim": box(2)}), "aim")],
)
def test_data_take_the_order_of_the_environment(tmp_path: Path, space: Any, first: str) -> None:
    path = demos(tmp_path / "a.hdf5", aim=2, tip=2)
    env = world(space)
    data = dataset(path, env)
    assert data.about["obs_keys"] == list(env.env.obs_parts or ())
    assert data.about["obs_keys"][0] == first
    assert data.obs[0].tolist() == (
        [200, 200, 100, 100] if first == "tip" else [100, 100, 200, 200]
    )
    assert dataset(path).about["obs_keys"] == ["aim", "tip"]


def test_the_environment_chooses_among_more_parts_than_it_has(tmp_path: Path) -> None:
    path = demos(tmp_path / "a.hdf5", extra=3, **dict.fromkeys(GOAL_KEYS, 2))
    space = Dict({key: box(2) for key in GOAL_KEYS})
    assert dataset(path, world(space)).about["obs_keys"] == list(GOAL_KEYS)
    assert dataset(path, world(Box(-1, 1, (9,)))).obs_size == 9  # without names: all, sorted


def test_a_given_order_that_is_not_the_environments_is_refused(tmp_path: Path) -> None:
    env = world(Dict(tip=box(2), aim=box(2)))
    path = demos(tmp_path / "a.hdf5", aim=2, tip=2, other=2)
    with pytest.raises(EnvError, match=r"read as aim \(2\), tip \(2\), .*obs_keys=\[tip,aim\]"):
        dataset(path, env, obs_keys=["aim", "tip"])
    assert dataset(path, env, obs_keys=["tip", "aim"]).obs[0].tolist() == [200, 200, 100, 100]
    assert dataset(path, env, obs_keys=["tip", "other"]).obs_size == 4  # the user's word for aim
    with pytest.raises(EnvError, match=r"goal of the environment's tip \(2\), goal \(1\): not in"):
        dataset(path, world(Dict(tip=box(2), goal=box(1))))


def test_a_converted_file_still_tells_its_order(tmp_path: Path) -> None:
    whole = read(demos(tmp_path / "a.hdf5", aim=2, tip=2))
    for name in ("b.npz", "b.hdf5"):
        write(whole, tmp_path / name)
        assert dataset(str(tmp_path / name), world(Dict({"aim": box(2), "tip": box(2)}))).obs_size
        with pytest.raises(EnvError, match="aim lies elsewhere"):
            dataset(str(tmp_path / name), world(Dict(tip=box(2), aim=box(2))))


def test_keys_choose_among_the_parts_of_any_environment() -> None:
    space = Dict(tip=box(2), more=Dict(kind=Discrete(3)), aim=box(1))
    given: dict[str, Any] = {"observation": space, "action": ACTION}
    some: Any = families.make("RheoSpaces-v0", {**given, "obs_keys": ["aim", "tip"]})
    whole = families.parts_of(some.env)
    assert whole == {"tip": 2, "more/kind": 3, "aim": 1}
    assert families.parts_of(some) == {"aim": 1, "tip": 2}
    assert some.observation(np.arange(6.0)).tolist() == [5, 0, 1]
    assert some.observation_space.shape == (3,) and len(some.reset(seed=0)[0]) == 3
    assert make("RheoSpaces-v0", 1, **given, obs_keys=None).obs_parts == whole


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["top"], r"obs_keys: it observes no 'top'.*tip.*; it observes .*tip \(2\)"),
        (["tip", "tip"], r"obs_keys=\[tip,tip\]: names a part twice"),
        ("tip", "obs_keys='tip': a list of names is needed"),
        ([], r"obs_keys=\[\]: a list of names is needed"),
    ],
)
def test_keys_that_are_not_there_are_one_line(keys: Any, message: str) -> None:
    space = Dict(tip=box(2), aim=box(1))
    with pytest.raises(EnvError, match=message) as caught:
        make("RheoSpaces-v0", 1, observation=space, action=ACTION, obs_keys=keys)
    assert "RheoSpaces-v0: env.options.obs_keys" in str(caught.value)
    with pytest.raises(EnvError, match="its observation is one vector without names"):
        make("InvertedPendulum-v5", 1, obs_keys=["angle"])


def test_parts_of_environments_that_their_authors_flattened() -> None:
    space = Dict(tip=box(2), more=Dict(kind=Discrete(3), on=MultiBinary(2)))
    env = gymnasium.make("RheoSpaces-v0", observation=space, action=ACTION)
    expected = {"tip": 2, "more/kind": 3, "more/on": 2}
    vector = families.flat_box(env, "RheoSpaces-v0")
    assert families.parts_of(vector) == families.parts_of(FlattenObservation(env)) == expected
    assert families.parts_of(TransformObservation(vector, lambda x: -x, None)) is None
    assert families.parts_of(gymnasium.make("InvertedPendulum-v5")) is None
    one = env.observation_space.sample()
    seen = vector.observation(one)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(seen, gymnasium.spaces.flatten(space, one))


@pytest.mark.parametrize("space", [box(3), Discrete(4, start=2), MultiBinary(3), Box(0, 1, ())])
def test_columns_of_a_part_are_gymnasiums(space: Any) -> None:
    space.seed(0)
    values = [space.sample() for _ in range(5)]
    flat: Any = [gymnasium.spaces.flatten(space, one) for one in values]
    np.testing.assert_array_equal(table(space, np.stack(values)), np.stack(flat))
    if isinstance(space, Discrete):
        with pytest.raises(ValueError, match="outside"):
            table(space, np.array([1]))


GRIPPER, PHASE = np.array([[0], [1], [0], [1]], np.uint8), np.arange(4)
WHOLE: dict[str, Any] = {"gripper": GRIPPER, "info/cube": 2, "pos": 3, "phase": PHASE}


def test_every_kind_of_number_and_nested_parts_are_read(tmp_path: Path) -> None:
    path = demos(
        tmp_path / "a.hdf5", **WHOLE, open=PHASE > 1, image=np.zeros((4, 8, 8, 3), np.uint8)
    )
    recording = read(path)
    assert recording.about["obs_keys"] == ["gripper", "info/cube", "open", "phase", "pos"]
    assert recording.obs[:4, 0].tolist() == [0, 1, 0, 1]
    assert recording.obs[3].tolist() == [1, 203, 203, 1, 3, 303, 303, 303]
    assert recording.about["left_out"] == ["image (8, 8, 3) uint8"]


@pytest.mark.parametrize("name", ["boxes (2, 3) float64", "label text", "image (8, 8, 3) uint8"])
def test_what_is_left_out_is_told_everywhere(
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {
        "boxes": np.zeros((4, 2, 3)),
        "label": np.array([b"a"] * 4),
        "image": np.zeros((4, 8, 8, 3), np.uint8),
    }
    key = name.partition(" ")[0]
    path = demos(tmp_path / "a.hdf5", pos=3, **{f"sub/{key}": made[key]})
    for verb in ("info", "check"):
        assert main(["data", verb, path]) == 0
        assert f"left out: sub/{name}" in capsys.readouterr().out
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    with caplog.at_level(logging.INFO, "rheo"):
        dataset(path)
    assert f"left out: sub/{name}" in caplog.text and "read are pos (3)" in caplog.text
    if key == "image":  # which can be read where it is named
        assert read(path, obs_keys=["pos", f"sub/{key}"]).images == {f"sub/{key}": [8, 8]}
        return
    with pytest.raises(EnvError, match=rf"obs/sub/{key}: .*can name pos"):
        read(path, obs_keys=[f"sub/{key}"])


def test_a_part_that_only_some_demonstrations_have_is_told(tmp_path: Path) -> None:
    path = demos(tmp_path / "a.hdf5", count=40, pos=3)
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/rare"] = np.zeros((4, 1))  # looked at first
        file["data/demo_20/obs/new"] = np.zeros((4, 1))
    assert read(path).about["left_out"] == [
        "rare (in 1 of 16 demonstrations)",
        "new (not in all, demo_20 has it)",
    ]


def test_a_file_with_groups_is_never_said_to_hold_nothing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data/demo_0/states"] = file["data/demo_0/actions"] = np.zeros((4, 2))
        file["data/demo_0/extra/deep"] = np.zeros(4)
    with pytest.raises(EnvError, match=r"robosuite's raw .*dataset_states_to_obs"):
        read(str(tmp_path / "a.hdf5"))
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["data/demo_0/states"]
    with pytest.raises(EnvError, match="demonstrations hold actions, extra/deep"):
        read(str(tmp_path / "a.hdf5"))
    view: Any = {"view/left": np.zeros((4, 8, 8, 3), np.uint8)}
    path = demos(tmp_path / "b.hdf5", **view)
    with pytest.raises(EnvError, match=r"images alone: view/left \(8 x 8\); .*obs_keys"):
        read(path)
    view = {"view/left": np.zeros((4, 8, 8, 2), np.uint8)}
    path = demos(tmp_path / "c.hdf5", **view)
    with pytest.raises(
        EnvError, match=r"no low-dimensional .*it holds view/left \(8, 8, 2\) uint8"
    ):
        read(path)


def test_columns_of_ends_and_rewards_are_read_like_lists(tmp_path: Path) -> None:
    recordings = []
    for i, shape in enumerate([(4,), (4, 1)]):
        path = demos(tmp_path / f"{i}.hdf5", pos=3)
        with h5py.File(path, "a") as file:
            for demo in range(3):
                last = (np.arange(4) == 3).reshape(shape)
                file[f"data/demo_{demo}/rewards"] = last * (demo < 2) * 1.0
                file[f"data/demo_{demo}/dones"] = last
        recordings.append(read(path))
    one, two = recordings
    assert np.flatnonzero(one.terminated).tolist() == [3, 7]
    for field in ("obs", "reward", "terminated", "ends"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


@pytest.mark.parametrize("goes", [True, False], ids=["the same order", "another order"])
def test_a_policy_of_recorded_parts_acts_where_they_lie_as_recorded(tmp_path, monkeypatch, goes):
    """A clone made without an environment is evaluated and tuned in one of the same sizes."""
    monkeypatch.chdir(tmp_path)
    path = demos(tmp_path / "arm.hdf5", aim=3, tip=2)
    small = ("policy.net.width=8", "policy.net.depth=1", "policy.steps=2", "steps=2", "episodes=1")
    assert main(["train", "algo=bc", f"data={path}", "name=base", *small]) == 0
    sizes, order = {"aim": 3, "tip": 2}, ("aim", "tip") if goes else ("tip", "aim")
    parts: Any = {key: box(sizes[key]) for key in order}  # keywords keep their order
    kind, name = gymnasium.spec("RheoSpaces-v0").entry_point, f"{order[0]}First-v0"
    given = {"observation": Dict(**parts), "action": ACTION}
    gymnasium.register(name, kind, kwargs=given, max_episode_steps=4)
    here = ["env=gym", f"env.id={name}"]
    tune = ["train", "algo=reinflow", "init=base", *here, "source.decisions=2", "env.num_envs=1"]
    wanted = 0 if goes else 2
    assert main(["eval", "runs/base", *here, "episodes=1"]) == wanted
    assert main([*tune, "name=tuned", "steps=2", "episodes=1"]) == wanted
    if goes:  # what the base was told is known of the tuned one too
        assert Run.open("tuned").meaning()["obs_keys"] == ["aim", "tip"]
