"""Scripts and their demonstrations: what they solve, what is kept, and what a file of them does."""

import json
import signal
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from shipped import skip_where_it_cannot_run

from rheo.envs import families
from rheo.envs.data.read import read
from rheo.envs.demonstrations import Demonstrations, recording_of
from rheo.envs.manipulation import scripted
from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.config.verbs import collect
from rheo.scripts.scripted import Tally, finish, put
from rheo.scripts.store.where import stored

TASKS = {  # episodes, noise, and how many of them at least are solved
    "robosuite/Lift-v0": (20, 0.15, 20),
    "robosuite/PickPlaceCan-v0": (3, 0.15, 3),
    "FetchReach-v4": (20, 0.1, 20),
    "FetchPush-v4": (20, 0.0, 18),
    "FetchPickAndPlace-v4": (20, 0.1, 19),
    "metaworld/drawer-open-v3": (5, 0.2, 5),
    "metaworld/reach-v3": (5, 0.2, 5),
    "metaworld/pick-place-v3": (5, 0.2, 4),
    "metaworld/button-press-v3": (5, 0.2, 5),
    "cube-single-play-singletask-task1-v0": (10, 0.0, 9),
    "cube-double-singletask-task4-v0": (3, 0.1, 3),  # the cubes change places
    "scene-singletask-task5-v0": (2, 0.0, 2),
    "puzzle-3x3-singletask-task1-v0": (3, 0.1, 3),
}
SMALL = [
    *("steps=20", "eval_every=20", "save_every=20", "log_every=10", "episodes=1"),
    *("env.num_envs=1", "policy.net.width=16", "policy.net.depth=1", "source.batch_size=8"),
]


def ready(env_id: str) -> None:
    """Skips where a task's package is missing or runs with another MuJoCo."""
    package = families.home(env_id)[0]
    if package in ("metaworld", "ogbench"):
        pytest.importorskip(package)
    else:
        skip_where_it_cannot_run("lift" if env_id.startswith("robosuite") else "fetch_push")


def played(env_id: str, **how: Any) -> Demonstrations:
    """Two episodes as its file in configs/env has the task."""
    ready(env_id)
    options = {"stop": True} if "/" in env_id else {}
    options |= {"sparse": True} if env_id.startswith("metaworld") else {}
    return Demonstrations(env_id, options, **{"episodes": 2, **how})


@pytest.mark.parametrize("env_id", TASKS)
def test_a_script_solves_its_task(env_id: str) -> None:
    episodes, noise, least = TASKS[env_id]
    demos = played(env_id, episodes=episodes, noise=noise, keep="all")
    count = len(list(demos))
    demos.close()
    assert count == demos.attempts == demos.kept == episodes
    assert demos.successes >= least


def test_the_place_of_the_cans_bin_is_robosuites() -> None:
    task: Any = played("robosuite/PickPlaceCan-v0").env.unwrapped
    place = task.env.target_bin_placements[task.env.object_to_id["can"]]
    np.testing.assert_allclose(scripted.CAN_BIN, place, atol=1e-12)


@pytest.mark.parametrize(
    "env_id",
    ["robosuite/Lift-v0", "FetchReach-v4", "metaworld/reach-v3", "cube-single-singletask-v0"],
)
def test_what_is_kept_is_what_the_environment_was_told_and_answered(env_id: str) -> None:
    demos = played(env_id, noise=0.1, seed=7)
    for i, demo in enumerate(demos):
        again = families.make(
            env_id, {**demos.told.get("env_options", {}), **after_success(env_id)}
        )
        seen = [again.reset(seed=7 + i)[0]]
        rewards = []
        for action in demo.action:
            obs, reward, *_ = again.step(action.astype(np.float32))  # as it was told
            seen.append(obs)
            rewards.append(reward)
        flat = [demo.obs[key] for key in demos.observed]
        near = 1e-6 if env_id.startswith("Fetch") else 0  # its solver starts where it last was
        np.testing.assert_allclose(np.concatenate(flat, axis=1), seen, rtol=0, atol=near)
        np.testing.assert_array_equal(demo.reward, rewards)
        assert demo.states is not None and len(demo.states) == len(demo.action)


def after_success(env_id: str) -> dict[str, Any]:
    """The option that lets an episode go on."""
    goes_on = {"stop": False} if "/" in env_id else {}
    return {"terminate_at_goal": False} if env_id.startswith("cube") else goes_on


def test_a_demonstration_goes_on_past_its_success_and_ends_there() -> None:
    for past in (0, 3):
        (demo,) = played("metaworld/reach-v3", episodes=1, past=past)
        assert demo.reward is not None
        assert demo.reward.sum() == past + 1 and demo.reward[-1] == 1 and demo.terminated


def test_where_success_ends_no_episode_the_goal_is_held_until_the_time_is_up() -> None:
    pytest.importorskip("gymnasium_robotics")
    (demo,) = played("FetchReach-v4", episodes=1)
    assert demo.reward is not None and len(demo.reward) == 50 and not demo.terminated
    assert (demo.reward[-20:] == 0).all()  # solved
    (demo,) = played("FetchReach-v4", episodes=1, past=3)
    assert demo.reward is not None and (demo.reward == 0).sum() == 4


def test_ogbenchs_last_steps_are_solved_ones_and_end_the_task() -> None:
    for past in (0, 3):
        (demo,) = played("cube-single-singletask-task1-v0", episodes=1, past=past)
        assert demo.reward is not None and demo.terminated
        unsolved = len(demo.reward) - past - 1
        np.testing.assert_array_equal(demo.reward, [-1.0] * unsolved + [0.0] * (past + 1))
    env = families.make("cube-single-singletask-task1-v0", {})
    env.reset(seed=0)
    ends = [env.step(action)[2] for action in demo.action[: unsolved + 1]]
    assert ends == [False] * unsolved + [True]


def test_an_environment_that_success_does_not_end_is_not_ended_by_it() -> None:
    options = {"terminate_at_goal": False}
    ready("cube-single-singletask-task1-v0")
    (demo,) = Demonstrations("cube-single-singletask-task1-v0", options, episodes=1)
    assert demo.reward is not None and demo.reward[-1] == 0 and not demo.terminated


def test_noise_is_an_attempts_own() -> None:
    first, second = (played("FetchReach-v4", noise=0.3, seed=seed) for seed in (3, 4))
    later, same = list(first)[1], list(second)[0]  # both of seed 4
    np.testing.assert_array_equal(later.action, same.action)
    assert (np.abs(later.action) <= 1).all() and (later.action[:, 3] == -1).all()


class Broken(gymnasium.Wrapper):
    """Raises at the first step of an episode (None: of each), or pays `answer` at all of them."""

    def __init__(
        self, env: gymnasium.Env, episode: int | None, answer: float | None = None
    ) -> None:
        super().__init__(env)
        self.episode, self.answer, self.begun = episode, answer, -1

    def reset(self, **how: Any) -> Any:
        self.begun += 1
        return self.env.reset(**how)

    def step(self, action: Any) -> Any:
        if self.episode not in (None, self.begun):
            return self.env.step(action)
        if self.answer is None:
            raise RuntimeError("the arm fell off")
        obs, _, *rest = self.env.step(action)
        return obs, self.answer, *rest


def asked(out: Path, *words: str) -> Any:
    """What `rheo collect set=scripted` is told."""
    return collect(["set=scripted", "env=fetch_reach", f"out={out}", *words])


@pytest.mark.parametrize(("layout", "name"), [("robomimic", "a.hdf5"), ("npz", "a.npz")])
def test_what_was_collected_before_a_failure_is_kept_and_said(
    tmp_path: Path, layout: str, name: str
) -> None:
    demos, out = played("FetchReach-v4", episodes=9), tmp_path / name
    demos.env = Broken(demos.env, 2)
    tally = Tally(demos)
    put(tally, demos, out, layout)
    with pytest.raises(
        RheoError, match=r"attempt 2 \(seed 2\), step 1: .*fell off.*: 2 of 100 "
    ) as told:
        finish(out, demos, tally, asked(tmp_path / "b.npz"))
    assert told.value.code == 3
    assert len(read(str(out)).ends) == 2
    card = json.loads(Path(f"{out}.card.json").read_text())
    assert card["episodes"] == 2 and "fell off" in card["stopped"]


def test_what_was_demonstrated_before_a_signal_is_kept_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, attempt = tmp_path / "a.hdf5", Demonstrations.attempt

    def signalled(demos: Demonstrations) -> Any:
        if demos.attempts == 2:
            signal.raise_signal(signal.SIGTERM)
        return attempt(demos)

    monkeypatch.setattr(Demonstrations, "attempt", signalled)
    words = ["collect", "set=scripted", "env=fetch_reach", f"out={out}", "episodes=9"]
    assert main(words) == 75
    told = "stopped by SIGTERM: 3 of 9 demonstrations were collected until then"
    assert told in capsys.readouterr().err and len(read(str(out)).ends) == 3


@pytest.mark.parametrize("layout", ["robomimic", "npz"])
def test_without_any_demonstration_there_is_no_file(tmp_path: Path, layout: str) -> None:
    demos = played("FetchReach-v4")
    demos.env = Broken(demos.env, 0)
    with pytest.raises(RheoError, match="fell off.*no demonstration in 0 attempts"):
        put(Tally(demos), demos, tmp_path / "a.hdf5", layout)
    assert not list(tmp_path.iterdir())


def test_an_attempt_with_broken_numbers_is_discarded() -> None:
    demos = played("FetchReach-v4", keep="all")
    demos.env = Broken(demos.env, 1, float("nan"))
    assert len(list(demos)) == 2
    assert (demos.attempts, demos.kept) == (3, 2) and demos.broken is None


def test_a_script_that_never_solves_is_given_up() -> None:
    demos = played("FetchReach-v4", episodes=1, keep="all")
    demos.env = Broken(demos.env, None, float("nan"))
    assert not list(demos)
    assert demos.broken == "FetchReach-v4: given up after 10 attempts"


def test_a_file_of_an_older_version_tells_that_version() -> None:
    ready("robosuite/Lift-v0")
    args = {"env_version": "1.4.1", "env_kwargs": {"lite_physics": True}}
    demos = Demonstrations("robosuite/Lift-v0", {"env_args": args}, episodes=1)
    (demo,) = demos
    assert demos.about()["env_args"]["env_version"] == "1.4.1"
    apart = demo.obs["robot0_eef_pos"] - demo.obs["object"][:, :3]
    np.testing.assert_allclose(demo.obs["object"][:, 7:], apart)


def test_a_recording_of_demonstrations_holds_what_a_policy_observes() -> None:
    demos = played("robosuite/Lift-v0")
    held = list(demos)
    recording = recording_of(held, demos.about())
    assert recording.obs.shape[1] == 19 and len(recording.ends) == 2
    assert recording.about["obs_keys"] == list(demos.observed)
    first = held[0]
    np.testing.assert_allclose(recording.obs[0, 9:], first.obs["object"][0], atol=1e-6)
    after = recording.obs[recording.successor[0], :3]
    np.testing.assert_allclose(after, first.obs["robot0_eef_pos"][-1], atol=1e-6)
    assert recording.terminated[recording.ends - 1].all()


@pytest.mark.parametrize(
    "env", ["lift", "metaworld/reach-v3", "fetch_push", "cube-single-play-singletask-task1-v0"]
)
@pytest.mark.parametrize(("layout", "name"), [("robomimic", "a.hdf5"), ("npz", "a.npz")])
def test_a_file_trains_and_is_evaluated_where_it_was_collected(
    env: str, layout: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {"lift": "robosuite/Lift-v0", "fetch_push": "FetchPush-v4"}
    ready(ids.get(env, env))
    monkeypatch.chdir(tmp_path)
    words = ["set=scripted", f"env={env}", "episodes=2", f"layout={layout}", f"out={name}"]
    assert main(["collect", *words]) == 0
    limit = ["env.options.max_episode_steps=4", "name=a"]
    assert main(["train", "algo=bc", f"data={name}", *SMALL, *limit]) == 0
    node = stored("runs/a")["env"]
    assert node["id"] == ids.get(env, env)
    rows = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert any("eval/success_once" in row for row in rows)


def test_a_lift_file_holds_what_robomimic_asks_for(tmp_path: Path) -> None:
    demos, out = played("robosuite/Lift-v0"), tmp_path / "a.hdf5"
    put(Tally(demos), demos, out, "robomimic")
    with h5py.File(out) as file:
        data: Any = file["data"]
        args = json.loads(data.attrs["env_args"])
        assert args["env_name"] == "Lift" and args["type"] == 1
        assert args["env_kwargs"]["controller_configs"]["body_parts"]["right"]["type"] == "OSC_POSE"
        demo = data["demo_1"]
        assert demo.attrs["model_file"].startswith("<mujoco")
        assert demo["states"].shape == (demo.attrs["num_samples"], 1 + 16 + 15)
        assert "robot0_joint_pos" in demo["obs"] and "object" in demo["next_obs"]
        assert "cube_pos" not in demo["obs"]  # which robomimic's own environment does not give


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env=hopper"], "no script that solves it; there are robosuite/Lift-v0"),
        ([], "set= needs env=NAME, for example env=lift"),
        (["env=lift", "steps=100"], "steps= is not for set=scripted"),
        (["env=lift", "num_envs=2"], "num_envs= is not for set=scripted"),
        (["env=lift", "keep=some"], "keep=some: not known; there are: all, success"),
        (["env=lift", "layout=zarr"], "layout=zarr: not known; there are: d4rl, npz, robomimic"),
        (["env=antmaze-large-navigate-singletask-v0"], "no script that solves it; there are"),
        (["env=cube-singl-singletask-v0"], "unknown environment 'cube-singl-singletask-v0'"),
        (["env=visual-cube-single-singletask-v0"], "env.id=cube-single-singletask-v0 env.options"),
        (["env=lift", "layout=npz"], "a.hdf5: layout=npz is written to .npz"),
    ],
)
def test_a_bad_request_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], message: str
) -> None:
    assert main(["collect", "set=scripted", f"out={tmp_path}/a.hdf5", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_for_demonstrations_alone_is_refused_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["random", "env=hopper_v4", f"out={tmp_path}/a.npz", "past=3"]
    assert main(["collect", *words]) == 2
    assert "past= is for set=scripted" in capsys.readouterr().err


def test_options_of_a_base_that_decide_observations_stay_where_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rheo.scripts.config.compose import compose
    from rheo.scripts.worlds import elsewhere

    ready("robosuite/Lift-v0")
    monkeypatch.chdir(tmp_path)
    args = '{env_name:Lift,env_version:"1.4.1",env_kwargs:{lite_physics:true}}'
    assert main(["collect", "set=scripted", "env=lift", "episodes=2", "out=a.npz"]) == 0
    words = [*SMALL, "env.options.max_episode_steps=4", f"env.options.env_args={args}"]
    assert main(["train", "algo=bc", "data=a.npz", *words, "name=a"]) == 0
    kept = compose(["algo=reinflow", "init=a", "env=lift"])["env"]["options"]
    assert kept["env_args"]["env_version"] == "1.4.1" and kept["stop"] is True
    node = elsewhere(stored("runs/a")["env"], ["env=lift"], [])
    assert node["options"]["env_args"]["env_version"] == "1.4.1"
    assert "env_args" not in elsewhere(stored("runs/a")["env"], ["env=can"], [])["options"]
