"""Manipulation suites: against the packages' own classes, from seeds, and over a saved state."""

import json
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from shipped import env_id, skip_where_it_cannot_run

from rheo.envs import families
from rheo.envs.adapter import GymnasiumVector
from rheo.envs.manipulation.scripted import script_of
from rheo.envs.suites import chunked, make
from rheo.errors import EnvError, RheoError
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.store.where import stored

SIZES = {  # of robomimic's low-dimensional observations and of DPPO's configurations
    "lift": (19, 7, 400),
    "can": (23, 7, 400),
    "square": (23, 7, 400),
    "tool_hang": (53, 7, 700),
    "transport": (59, 14, 700),
    "kitchen_mixed": (59, 9, 280),
    "kitchen_complete": (59, 9, 280),
}
REPEATING = ("robosuite/Lift-v0", "robosuite/PickPlaceCan-v0", "metaworld/reach-v3",
             "kitchen/mixed-v0")  # fmt: skip


def ready(named: str) -> None:
    """Skips where an id's package is missing or runs with another MuJoCo."""
    files = {"robosuite": "lift", "metaworld": None, "kitchen": "kitchen_mixed"}
    file = files[named.partition("/")[0]]
    pytest.importorskip("metaworld") if file is None else skip_where_it_cannot_run(file)


def actions(env: Any, steps: int, seed: int = 0) -> torch.Tensor:
    """Random actions [steps, N, Da]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand((steps, env.num_envs, env.action_dim), generator=generator) - 1


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_horizons_are_those_that_are_published(name: str) -> None:
    skip_where_it_cannot_run(name)
    env = make(env_id(name), 1)
    assert (env.obs_dim, env.action_dim, env.max_steps) == SIZES[name]
    env.close()


@pytest.mark.parametrize("named", REPEATING)
def test_an_episode_repeats_from_its_seed_to_the_last_bit(named: str) -> None:
    ready(named)
    first, second = (make(named, 2, max_episode_steps=8) for _ in range(2))
    start = first.reset(5)
    assert torch.equal(start, second.reset(5)) and not torch.equal(start[0], start[1])
    for action in actions(first, 20):  # over the ends of two episodes
        one, other = first.step(action), second.step(action)
        assert torch.equal(one.obs, other.obs) and torch.equal(one.reward, other.reward)


@pytest.mark.parametrize("named", REPEATING)
def test_a_saved_episode_goes_on_to_the_last_bit_in_new_processes(named: str) -> None:
    ready(named)
    first = make(named, 2, max_episode_steps=8)
    first.reset(5)
    told = actions(first, 30)
    for action in told[:13]:  # in the middle of the second episode
        first.step(action)
    state = first.state_dict()
    second = make(named, 2, max_episode_steps=8)
    assert second.load_state_dict(state) is None
    for action in told[13:]:
        one, other = first.step(action), second.step(action)
        assert torch.equal(one.obs, other.obs) and torch.equal(one.reward, other.reward)
        assert torch.equal(one.truncated, other.truncated)


def test_lift_is_robosuites_own_step_for_step() -> None:
    skip_where_it_cannot_run("lift")
    from rheo.envs.manipulation.robosuite_tasks import arguments, package
    from rheo.envs.seeded import drawing_from

    env = make("robosuite/Lift-v0", 1, dtype=torch.float64)
    obs = env.reset(3)
    bits = np.random.MT19937(0)
    with drawing_from(bits):
        own = package().make("Lift", **arguments("Lift", None) | {"hard_reset": False})
    keys = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object-state"]
    with drawing_from(np.random.MT19937(3)):
        seen = own.reset()
        for action in [None, *actions(env, 30)]:
            if action is not None:
                obs = env.step(action).obs
                seen, reward, _, _ = own.step(action[0].double().numpy())
                assert reward == 0
            assert np.array_equal(obs[0].numpy(), np.concatenate([seen[key] for key in keys]))


def test_metaworld_is_the_packages_own_step_for_step() -> None:
    classes = pytest.importorskip("metaworld.env_dict").ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    env = make("metaworld/drawer-open-v3", 1, dtype=torch.float64)
    own = classes["drawer-open-v3-goal-observable"](seed=0)
    own._freeze_rand_vec, own.seeded_rand_vec = False, True
    own.seed(4)
    assert np.array_equal(env.reset(4)[0].numpy(), own.reset()[0])
    for action in actions(env, 30):
        step = env.step(action)
        seen, reward, *_ = own.step(action[0].double().numpy())
        assert np.array_equal(step.obs[0].numpy(), seen) and step.reward.item() == reward


def test_metaworlds_pads_touch_what_the_package_says_they_touch() -> None:
    """Asked in every step of push and pick-place, with forces that come and go."""
    pytest.importorskip("metaworld")
    families.register("metaworld/push-v3")
    env = families.make("metaworld/push-v3", {})
    inner = cast(Any, env.unwrapped).env
    own = type(inner).touching_object
    seen = {"flat": env.reset(seed=1)[0]}
    plan = script_of("metaworld/push-v3").plan(seen)
    action, said = next(plan), []
    for _ in range(70):
        seen = {"flat": env.step(action)[0]}
        touched = [inner.touching_object(geom) for geom in range(inner.model.ngeom)]
        assert touched == [own(inner, geom) for geom in range(inner.model.ngeom)]
        said.append(any(touched))
        action = plan.send(seen)
    assert 5 < sum(said) < 65


def test_a_goal_that_is_not_observed_is_zeros() -> None:
    pytest.importorskip("metaworld")
    env = make("metaworld/reach-v3", 1, observe_goal=False)
    assert torch.equal(env.reset(0)[0, -3:], torch.zeros(3))
    assert bool(make("metaworld/reach-v3", 1).reset(0)[0, -3:].abs().sum() > 0)


class Solved:
    """robosuite's task with a success that is switched by hand."""

    def __init__(self, env: Any) -> None:
        self.env, self.now = env, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def _check_success(self) -> bool:
        return self.now


@pytest.mark.parametrize("stop", [True, False])
def test_success_ends_an_episode_only_where_the_protocol_says_so(stop: bool) -> None:
    skip_where_it_cannot_run("lift")
    env = make("robosuite/Lift-v0", 1, stop=stop)
    env.reset(0)
    task = env._envs[0].unwrapped  # type: ignore[attr-defined]
    task.env = Solved(task.env)
    task.env.now = True
    step = env.step(torch.zeros(1, 7))
    assert bool(step.terminated[0]) == stop and step.success is not None
    assert bool(step.success[0])


def robomimic_file(path: Path, **changes: Any) -> Path:
    """Two demonstrations of nothing in Lift, in the words of robosuite 1.4."""
    old = {
        "type": "OSC_POSE", "input_max": 1, "input_min": -1, "damping": 1, "kp": 150,
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "control_delta": True,
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "impedance_mode": "fixed",
        "kp_limits": [0, 300], "damping_limits": [0, 10], "position_limits": None,
        "orientation_limits": None, "uncouple_pos_ori": True, "interpolation": None,
        "ramp_ratio": 0.2,
    } | changes  # fmt: skip
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": old,
              "camera_heights": 84, "camera_widths": 84, "use_camera_obs": False}  # fmt: skip
    args = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
    widths = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps(args)
        for i in range(2):
            demo = data.create_group(f"demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (20, 7))
            for key, width in widths.items():
                demo[f"obs/{key}"] = rng.normal(size=(20, width))
    return path


def test_a_robomimic_file_brings_its_environment_and_its_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_where_it_cannot_run("lift")
    monkeypatch.chdir(tmp_path)
    file = robomimic_file(tmp_path / "lift.hdf5")
    words = [
        *("train", "algo=bc", f"data={file}", "steps=20", "eval_every=20", "save_every=20"),
        *("episodes=1", "env.num_envs=1", "env.options.max_episode_steps=4", "name=a"),
        *("policy.net.width=16", "policy.net.depth=1", "source.batch_size=8", "log_every=10"),
    ]
    assert main(words) == 0
    env = stored("runs/a")["env"]
    assert env["id"] == "robosuite/Lift-v0" and env["options"]["stop"] is True
    assert env["options"]["env_args"]["env_version"] == "1.4.1"
    rows = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert any("eval/success_once" in row for row in rows)
    assert main(["eval", "a", "episodes=1"]) == 0


def test_an_old_controllers_keys_are_todays() -> None:
    skip_where_it_cannot_run("lift")
    from rheo.envs.manipulation.robosuite_tasks import arguments

    old = {"type": "OSC_POSE", "damping": 2, "damping_limits": [0, 5], "control_delta": False}
    args = {"env_kwargs": {"controller_configs": old}, "env_version": "1.4.0"}
    settings = arguments("Lift", json.dumps(args))
    arm = settings["controller_configs"]["body_parts"]["right"]
    assert (arm["damping_ratio"], arm["damping_ratio_limits"]) == (2, [0, 5])
    assert (arm["input_type"], arm["input_ref_frame"]) == ("absolute", "world")
    assert settings["lite_physics"] is False
    assert arguments("Lift", {"env_version": "1.5.1"})["lite_physics"] is True


def seen_twice(task: str, steps: int = 3) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The same steps as observed for a file of robosuite 1.4, and as 1.5 observes them."""
    skip_where_it_cannot_run("lift")
    families.register(f"robosuite/{task}-v0")
    kwargs = {"env_version": "1.4.1", "env_kwargs": {"lite_physics": True}}
    old, new = (families.make(f"robosuite/{task}-v0", o) for o in ({"env_args": kwargs}, {}))
    rng, found = np.random.default_rng(0), []
    for env in (old, new):
        env.reset(seed=1)
    for _ in range(steps):
        action = rng.uniform(-1, 1, new.action_space.shape)
        for env in (old, new):
            env.step(action)
        bases: tuple[Any, Any] = (old.unwrapped, new.unwrapped)
        found.append((dict(bases[0].seen), dict(bases[1].seen)))
    return found


def test_lifts_object_of_an_older_file_ends_with_hand_minus_cube() -> None:
    for old, new in seen_twice("Lift"):
        np.testing.assert_array_equal(old["object"][:7], new["object"][:7])
        np.testing.assert_allclose(old["object"][7:], new["robot0_eef_pos"] - new["cube_pos"])
        np.testing.assert_allclose(old["object"][7:], -new["object"][7:])


def test_cans_object_of_an_older_file_is_its_pose_and_then_that_from_the_hand() -> None:
    for old, new in seen_twice("PickPlaceCan"):
        place, turn = new["Can_pos"], Rotation.from_quat(new["Can_quat"])
        hand = Rotation.from_quat(new["robot0_eef_quat"])
        np.testing.assert_array_equal(old["object"][:7], [*place, *new["Can_quat"]])
        apart = hand.inv().apply(place - new["robot0_eef_pos"])
        np.testing.assert_allclose(old["object"][7:10], apart, atol=1e-6)
        turned = Rotation.from_quat(old["object"][10:])
        assert (turned.inv() * hand.inv() * turn).magnitude() < 1e-3
        np.testing.assert_array_equal(new["object"][7:], [*place, *new["Can_quat"]])


def test_transports_object_of_an_older_file_tells_at_its_end_whether_it_is_done() -> None:
    ((old, new),) = seen_twice("TwoArmTransport", 1)
    order = [*range(27), *range(29, 41), 27, 28]
    np.testing.assert_array_equal(old["object"], new["object"][order])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"env_args": "{"}, "env_args: not JSON"),
        ({"env_args": {"env_name": "Door"}}, "they are of Door, and this environment is Lift"),
        ({"env_args": {"env_kwargs": {"controller_configs": {"type": "OSC"}}}}, "OSC_POSE"),
        ({"obs_keys": ["robot0_eef_poz"]}, "observes no 'robot0_eef_poz'.*robot0_eef_pos"),
        ({"stopp": True}, "stopp"),
    ],
)
def test_wrong_options_of_robosuite_are_told(options: dict[str, Any], text: str) -> None:
    skip_where_it_cannot_run("lift")
    with pytest.raises(EnvError, match=text):
        make("robosuite/Lift-v0", 1, **options)


def test_observations_are_those_that_were_named_in_that_order() -> None:
    skip_where_it_cannot_run("lift")
    env = make("robosuite/Lift-v0", 1, obs_keys=["object", "robot0_joint_pos"])
    assert env.obs_parts == {"object": 10, "robot0_joint_pos": 7}
    env.close()


@pytest.mark.parametrize(
    ("key", "remedy"),
    [("seed", "seed=N"), ("num_envs", "set env.num_envs"), ("workers", "set env.workers")],
)
def test_an_option_that_is_ours_is_refused(key: str, remedy: str) -> None:
    settings: dict[str, Any] = {
        "num_envs": 1, "backend": "auto", "threads": 1, "execute": 1, "obs_steps": 1, "gamma": 0.9,
        "workers": 0, "step_timeout": 9.0, "restarts": 0, "randomise": {}, "cost": {},
    }  # fmt: skip
    with pytest.raises(EnvError, match=f"env.options.{key}=1: .*{remedy}"):
        chunked(id="Hopper-v5", options={key: 1}, **settings)


def test_what_is_bound_to_another_mujoco_is_advised_into_an_environment_of_its_own() -> None:
    from rheo.envs.packages import bound_packages

    if bound_packages():
        pytest.skip("this is that environment")
    with pytest.raises(RheoError, match=r"\.venv-manipulation"):
        compose(["algo=sac", "env=lift"])


@pytest.mark.parametrize("hard", [False, True])
def test_a_simulation_that_blows_up_is_cut_and_counted(hard: bool) -> None:
    skip_where_it_cannot_run("lift")
    env = make("robosuite/Lift-v0", 1, hard_reset=hard)
    assert isinstance(env, GymnasiumVector)
    env.reset(0)
    whole = env.step(torch.zeros(1, env.action_dim))
    assert whole.valid.all() and not whole.truncated.any()
    task: Any = env._envs[0].unwrapped
    task.env.sim.data._data.qvel[:] = 1e12
    out = env.step(torch.zeros(1, env.action_dim))
    assert out.truncated.all() and not out.valid.any()
    assert env.counters["physics_resets"] == 1
    env.close()
