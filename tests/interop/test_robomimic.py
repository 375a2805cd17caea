"""robomimic's own tools on files of ours. They run where a robomimic 0.5 can be imported."""

import json
import types
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rheo.envs.data.read import read
from rheo.scripts.cli import main
from rheo.scripts.rollout_policy import RolloutPolicy

OBS = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
EPISODES = 5


@pytest.fixture(scope="module")
def robomimic() -> Any:
    """Its modules, on observations of numbers alone."""
    pytest.importorskip("robosuite")
    package = pytest.importorskip("robomimic")
    if not package.__version__.startswith("0.5"):
        pytest.skip(f"robomimic {package.__version__}")
    import robomimic.utils.dataset as dataset  # type: ignore[import-not-found]
    import robomimic.utils.env_utils as env_utils  # type: ignore[import-not-found]
    import robomimic.utils.obs_utils as obs_utils  # type: ignore[import-not-found]

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": OBS, "rgb": []}})
    return types.SimpleNamespace(dataset=dataset, env_utils=env_utils)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ours."""
    out = tmp_path_factory.mktemp("demos") / "lift.hdf5"
    words = ["env=lift", f"episodes={EPISODES}", "noise=0.15", "layout=robomimic", f"out={out}"]
    assert main(["collect", "set=scripted", *words]) == 0
    return out


def sequences(robomimic: Any, file: Path, **how: Any) -> Any:
    """Its data set of a file, as its training reads it."""
    return robomimic.dataset.SequenceDataset(
        hdf5_path=str(file),
        obs_keys=OBS,
        action_keys=["actions"],
        dataset_keys=["actions", "rewards", "dones"],
        action_config={"actions": {"normalization": None}},
        seq_length=10,
        hdf5_cache_mode="low_dim",
        hdf5_use_swmr=True,
        **how,
    )


def test_its_data_set_reads_what_we_read(robomimic: Any, demos: Path) -> None:
    ours = read(str(demos))
    every = sequences(robomimic, demos)
    assert len(every) == len(ours.action) and every.n_demos == EPISODES
    window = every[0]
    beside = np.concatenate([window["obs"][key][0] for key in OBS])
    np.testing.assert_allclose(beside, ours.obs[0], atol=1e-6)
    np.testing.assert_allclose(window["actions"], ours.action[:10], atol=1e-6)
    following = np.concatenate([window["next_obs"][key][0] for key in OBS])
    np.testing.assert_allclose(following, ours.obs[1], atol=1e-6)
    train, valid = (sequences(robomimic, demos, filter_by_attribute=k) for k in ("train", "valid"))
    assert (train.n_demos, valid.n_demos) == (EPISODES - 1, 1)


def made_from(robomimic: Any, file: Path) -> Any:
    """Its environment of a file."""
    with h5py.File(file) as content:
        meta = json.loads(content["data"].attrs["env_args"])  # type: ignore[arg-type]
    return robomimic.env_utils.create_env_from_metadata(env_meta=meta, render_offscreen=False)


def test_its_environment_plays_our_demonstrations_back(robomimic: Any, demos: Path) -> None:
    env = made_from(robomimic, demos)
    assert env.name == "Lift" and env.action_dimension == 7
    solved = 0
    with h5py.File(demos) as file:
        for i in range(EPISODES):
            demo: Any = file[f"data/demo_{i}"]
            state = {"states": demo["states"][0], "model": demo.attrs["model_file"]}
            seen = env.reset_to(state)
            for key in OBS:  # the observation of the stored state is the stored one
                np.testing.assert_allclose(seen[key], demo[f"obs/{key}"][0], atol=1e-5)
            for action in demo["actions"][()]:
                env.step(action)
            solved += bool(env.is_success()["task"])
    assert solved == EPISODES


def test_a_converted_file_is_read_too(robomimic: Any, demos: Path, tmp_path: Path) -> None:
    flat, back = tmp_path / "a.npz", tmp_path / "b.hdf5"
    assert main(["data", "convert", str(demos), str(flat)]) == 0
    assert main(["data", "convert", str(flat), str(back), "layout=robomimic"]) == 0
    with h5py.File(demos) as first, h5py.File(back) as second:
        told = [json.loads(f["data"].attrs["env_args"]) for f in (first, second)]  # type: ignore
    assert told[0] == told[1]
    one, other = sequences(robomimic, demos), sequences(robomimic, back)
    assert len(one) == len(other)
    for key in OBS:
        np.testing.assert_allclose(one[20]["obs"][key], other[20]["obs"][key], atol=1e-6)


def test_a_policy_of_ours_acts_in_its_environment(
    robomimic: Any, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["steps=20", "log_every=10", "eval_every=20", "save_every=20", "episodes=1"]
    words += ["policy.net.width=16", "policy.net.depth=1", "source.batch_size=8", "name=a"]
    words += ["horizon=4", "env.num_envs=1", "env.options.max_episode_steps=4"]
    assert main(["train", "algo=bc", f"data={demos}", *words]) == 0
    policy, env = RolloutPolicy("a"), made_from(robomimic, demos)
    assert policy.obs_parts == dict(zip(OBS, (3, 4, 2, 10), strict=True))
    for _ in range(2):
        ob = env.reset()
        policy.start_episode()
        for _ in range(6):
            action = policy(ob=ob, goal=None)
            assert action.shape == (7,) and (np.abs(action) <= 1).all()
            ob, _, done, _ = env.step(action)
            assert not done
