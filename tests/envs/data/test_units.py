"""Actions of every unit end as what the environment will execute."""

from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch

from rheo.envs.chunk import ChunkEnv
from rheo.envs.data.read import read
from rheo.envs.data.recording import Stage
from rheo.envs.datasets import Dataset
from rheo.envs.suites import make
from rheo.errors import EnvError

STEPS = 200
LOW, HIGH = np.array([-2.0, -0.4]), np.array([6.0, 0.4])
STAGE = Stage("Arm-v0", LOW, HIGH)


def drawn(low: Any, high: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(low, high, (STEPS, 2))


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(actions: Any, **more: Any) -> str:
        ends = np.arange(20, STEPS + 1, 20)
        rows = {"observations": np.random.default_rng(1).normal(size=(STEPS, 3))}
        np.savez(tmp_path / "a.npz", **rows, actions=actions, episode_ends=ends, **more)
        return str(tmp_path / "a.npz")

    return write


def said(recording: Any) -> str:
    return "\n".join(text for _, text in recording.about.get("remarks", ()))


def executed(unit: Any) -> Any:
    """What the environment does with actions in [-1, 1]."""
    return unit * (HIGH - LOW) / 2 + (HIGH + LOW) / 2


def test_physical_actions_are_executed_as_they_were_recorded(save: Any) -> None:
    actions = drawn(LOW, HIGH)
    actions[7] = 1.0, 0.4
    recording = read(save(actions), action_scale="physical", stage=STAGE)
    np.testing.assert_allclose(executed(recording.action), actions, atol=1e-6)
    assert recording.action[7].tolist() == pytest.approx([-0.25, 1.0])
    assert "mapped from the bounds of Arm-v0" in said(recording)
    bounds = {"action_low": LOW, "action_high": HIGH}
    alone = read(save(actions, **bounds), action_scale="physical")  # without an environment
    np.testing.assert_array_equal(alone.action, recording.action)


def test_a_file_that_does_not_tell_its_unit_is_asked_about(save: Any) -> None:
    actions = drawn(-0.39, 0.39)
    recording = read(save(actions), stage=STAGE)
    np.testing.assert_array_equal(recording.action, actions.astype("f4"))
    text = "does not tell their unit: read as in [-1, 1], which Arm-v0 maps to [-2, 6], [-0.4, 0.4]"
    assert text in said(recording) and "data.action_scale=physical" in said(recording)
    plain = Stage("Plain-v0", -np.ones(2), np.ones(2))
    for quiet in ({"stage": plain}, {}, {"stage": STAGE, "action_scale": "unit"}):
        asked = read(save(actions), **quiet)
        assert said(asked) == "" and (asked.action == recording.action).all()


def test_extremes_at_the_bounds_are_physical_without_being_told(save: Any) -> None:
    actions = np.clip(drawn(2 * LOW, 2 * HIGH), LOW, HIGH)
    recording = read(save(actions), stage=STAGE)
    np.testing.assert_allclose(executed(recording.action), actions, atol=1e-6)
    assert "extremes are exactly the bounds of Arm-v0" in said(recording)
    unit = np.clip(drawn([-2, -2], [2, 2]), -1, 1)  # the control: ends at -1 and 1
    kept = read(save(unit), stage=STAGE)
    np.testing.assert_array_equal(kept.action, unit.astype("f4"))
    old = read(save(np.clip(actions, -0.4, 0.4)), stage=STAGE, action_scale="recorded")
    assert np.abs(old.action).max() == np.float32(0.4) and said(old) == ""


def test_what_a_file_says_of_its_unit_is_followed(save: Any) -> None:
    actions, bounds = drawn(LOW, HIGH), {"action_low": LOW, "action_high": HIGH}
    mapped = read(save(actions, **bounds), stage=STAGE)
    np.testing.assert_allclose(executed(mapped.action), actions, atol=1e-6)
    small = drawn(-0.3, 0.3)
    told = read(save(small, action_scale="unit", **bounds), stage=STAGE)
    np.testing.assert_array_equal(told.action, small.astype("f4"))
    told = read(save(small, action_scale="physical"), stage=STAGE)
    np.testing.assert_allclose(executed(told.action), small, atol=1e-6)
    other = Stage("Other-v0", 2 * LOW, 2 * HIGH)
    assert "Other-v0 has other bounds than the file records" in said(
        read(save(actions, **bounds), stage=other)
    )
    unit = read(save(small, **bounds), stage=STAGE, action_scale="unit")
    np.testing.assert_array_equal(unit.action, small.astype("f4"))


@pytest.mark.parametrize(
    ("actions", "more", "how", "message"),
    [
        (drawn(-1, 1), {}, {}, "nothing tells their bounds; train with env=NAME, or .* action_low"),
        (drawn(-1, 1), {"action_scale": "unit"}, {"stage": STAGE}, "says that its actions are in"),
        (drawn(-3, 7), {}, {"stage": STAGE}, r"outside.*; mapped from the bounds of Arm-v0 to \["),
        (drawn(-1, 1), {"action_low": [1, 2], "action_high": [1, 3]}, {}, "are no finite ranges"),
    ],
)
def test_physical_actions_without_fitting_bounds_are_refused(
    save: Any, actions: Any, more: dict[str, Any], how: dict[str, Any], message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        read(save(actions, **more), action_scale="physical", **how)
    with pytest.raises(EnvError, match="action_scale='metres'; there are auto, unit, physical"):
        read(save(actions), action_scale="metres")


def test_pixels_are_not_clipped_to_the_box(save: Any) -> None:
    pixels = drawn(50, 450)
    remedy = "data.action_scale=physical with env=NAME.*action_low and action_high"
    for on_bad in ("refuse", "clip"):
        with pytest.raises(EnvError, match=rf"actions, .*read as in \[-1, 1\]: .*{remedy}") as told:
            read(save(pixels), on_bad=on_bad)
        assert "on_bad=clip" not in str(told.value)
    field = Stage("PushT", np.zeros(2), np.full(2, 512.0))
    recording = read(save(pixels), on_bad="clip", action_scale="physical", stage=field)
    np.testing.assert_allclose(recording.action, pixels / 256 - 1, atol=1e-6)


def test_rotations_of_absolute_poses_are_not_clipped(tmp_path: Path) -> None:
    path, turns = tmp_path / "low_dim_abs.hdf5", np.linspace(-3.14, 3.14, 60).reshape(20, 3)
    with h5py.File(path, "w") as file:
        file["data/demo_0/obs/object"] = np.random.default_rng(0).normal(size=(20, 3))
        file["data/demo_0/actions"] = turns
    with pytest.raises(EnvError, match="actions, episode 0, .*action_low and action_high"):
        read(str(path), on_bad="clip")
    with h5py.File(path, "a") as file:
        file["data"].attrs.update(action_low=[-np.pi] * 3, action_high=[np.pi] * 3)
    np.testing.assert_allclose(read(str(path)).action, turns / np.pi, atol=1e-6)


def test_little_that_leaves_the_box_is_still_clipped(save: Any) -> None:
    actions = np.clip(drawn(-1, 1), -0.99, 0.99)
    actions.flat[:22] = 1.37  # 5.5 % of the entries, as in door-human
    recording = read(save(actions), on_bad="clip")
    assert recording.action.max() == 1 and (recording.action == 1).sum() == 22
    actions.flat[:44] = 1.37
    with pytest.raises(EnvError, match="44 of 400 .* too many or too far to be clipped"):
        read(save(actions), on_bad="clip")
    actions.flat[:44] = 0
    actions[3, 1] = -2.1
    with pytest.raises(EnvError, match="episode 0, step 3, value -2.1: 1 of 400 .* too far"):
        read(save(actions), on_bad="clip")


class Pull(gymnasium.Env):
    """Shows the action that it was given; its bounds are -2 and 6."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-2, 6, (1,), np.float64)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        return np.array(action, np.float64), 0.0, False, False, {}


def test_a_dataset_has_the_unit_of_its_runs_environment(tmp_path: Path) -> None:
    gymnasium.register("Pull-v0", entry_point=Pull)  # type: ignore[arg-type]
    env = ChunkEnv(make("Pull-v0", 1), execute=1, obs_steps=1, gamma=0.9)
    actions = np.linspace(0, 2, 21)[:, None]
    np.savez(tmp_path / "a.npz", observations=actions, actions=actions, episode_ends=[21])
    how: dict[str, Any] = {"batch_size": 4, "holdout": 0.0, "obs_steps": 1, "on_bad": "refuse"}
    how |= {"storage": "ram", "obs_keys": None, "filter": None, "time_limit": None, "big": False}
    how |= {"path": str(tmp_path / "a.npz"), "action_scale": "physical"}
    data = Dataset(torch.Generator().manual_seed(0), 1, env, **how)
    env.reset(0)
    for step in (0, 10, 20):  # 0, 1 and 2
        shown = env.step(data.windows(torch.tensor([step])).action).obs
        assert shown.item() == pytest.approx(actions[step, 0], abs=1e-6)
    with pytest.raises(EnvError, match="nothing tells their bounds"):
        Dataset(torch.Generator().manual_seed(0), 1, **how)


def test_extremes_are_bounds_that_are_kept(tmp_path: Path) -> None:
    action = np.array([[50.0, -3, 7], [450, 1, 7], [250, -1, 7]])
    np.savez(tmp_path / "a.npz", observations=np.eye(3), actions=action, episode_ends=[3])
    recording = read(str(tmp_path / "a.npz"), action_scale="extremes")
    np.testing.assert_allclose(recording.action, [[-1, -1, 0], [1, 1, 0], [0, 0, 0]], atol=1e-6)
    about = recording.about
    assert (about["action_low"], about["action_high"]) == ([50, -3, 6], [450, 1, 8])
    assert "their extremes, [-3, 1], [6, 8], [50, 450]," in about["unit"]


def test_extremes_leave_out_what_is_no_number(tmp_path: Path) -> None:
    action = np.array([[50.0], [450], [np.inf], [np.nan]])
    np.savez(tmp_path / "a.npz", observations=np.eye(4), actions=action, episode_ends=[2, 3, 4])
    recording = read(str(tmp_path / "a.npz"), action_scale="extremes", on_bad="drop")
    assert recording.action.tolist() == [[-1], [1]] and recording.about["action_high"] == [450]
    with pytest.raises(EnvError, match="actions, episode 1, step 0, value inf"):
        read(str(tmp_path / "a.npz"), action_scale="extremes")


def test_extremes_are_refused_where_an_environment_has_bounds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", observations=np.eye(3), actions=np.eye(3), episode_ends=[3])
    stage = Stage("Mine-v0", np.full(3, -2.0), np.full(3, 2.0))
    with pytest.raises(EnvError, match=r"Mine-v0 executes .* own bounds, \[-2, 2\]; .*=physical"):
        read(str(tmp_path / "a.npz"), action_scale="extremes", stage=stage)
