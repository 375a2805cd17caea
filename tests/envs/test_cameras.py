"""Images of MuJoCo's cameras as parts of an observation."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from shipped import skip_where_it_cannot_run
from steps import same

from rheo.envs import cameras, families
from rheo.envs.adapter import GymnasiumVector
from rheo.envs.cameras import Cameras, Canvas
from rheo.envs.chunk import ChunkEnv
from rheo.envs.data.demos import DONES
from rheo.envs.data.read import played_in, read
from rheo.envs.encoded import Encoded
from rheo.envs.mujoco import physics
from rheo.envs.mujoco.physics import mujoco
from rheo.envs.parts import LOW_DIM
from rheo.envs.pixels import unpacked
from rheo.envs.recorder import collect
from rheo.envs.suites import make
from rheo.errors import EnvError
from rheo.scripts.assemble import make_env
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose

pytestmark = pytest.mark.usefixtures("drawing")

HERE: dict[str, Any] = {"cameras": ["track"], "size": 20}
CRACKED = "fragile:Cracked-v0"


def image(obs: torch.Tensor, width: int, height: int) -> np.ndarray:
    """The last numbers of an observation as an image."""
    return unpacked(obs[..., -width * height :].numpy(), height)


def test_a_camera_s_image_follows_the_numbers_and_the_seed() -> None:
    env, plain = make("Hopper-v5", 2, **HERE), make("Hopper-v5", 2, backend="gymnasium")
    assert env.obs_parts == {"observation": 11, "track_image": 400}
    assert env.obs_images == {"track_image": (20, 20)} and env.backend == "gymnasium"
    obs, numbers = env.reset(3), plain.reset(3)
    for _ in range(3):
        assert torch.equal(obs[:, :11], numbers)
        shown = image(obs, 20, 20)
        assert shown.max() > 100 and shown.std() > 10 and not (shown[0] == shown[1]).all()
        action = torch.full((2, 3), 0.7)
        obs, numbers = env.step(action).obs, plain.step(action).obs
    other = make("Hopper-v5", 2, **HERE)
    assert torch.equal(other.reset(3), env.reset(3))


def test_it_is_what_mujoco_s_own_renderer_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the smoothing of edges, which is left out here; the first row is the top one."""
    env = families.make("Hopper-v5", {"cameras": ["track"], "size": [40, 60]})
    obs = torch.from_numpy(env.reset(seed=0)[0])
    base = env.unwrapped
    model, data = base.model, base.data  # type: ignore[attr-defined]
    before = model.vis.quality.offsamples
    seen = image(obs, 60, 40).astype(int)
    own = type(cameras.context())  # whatever MUJOCO_GL said when MuJoCo was imported
    monkeypatch.setattr("mujoco.rendering.classic.gl_context.GLContext", own)
    with mujoco.Renderer(model, 40, 60) as renderer:
        renderer.update_scene(data, "track")
        wanted = renderer.render().astype(int)
    assert np.abs(seen - wanted).mean() < 4 < np.abs(seen[::-1] - wanted).mean()
    assert model.vis.quality.offsamples == before > 0


def test_copies_of_an_environment_share_what_is_drawn_on() -> None:
    env = make("Hopper-v5", 3, **HERE)
    made = {id(one.cameras.canvas) for one in env._envs}  # type: ignore[attr-defined]
    assert len(made) == 1
    other = make("Walker2d-v5", 1, **HERE)
    assert other._envs[0].cameras.canvas is not env._envs[0].cameras.canvas  # type: ignore


def test_an_environment_with_a_camera_goes_on_to_the_last_bit() -> None:
    env, again = make("Hopper-v5", 2, **HERE), make("Hopper-v5", 2, **HERE)
    env.reset(0)
    action = torch.full((2, 3), 0.3)
    env.step(action)
    again.reset(9)
    assert again.load_state_dict(env.state_dict()) is None
    assert torch.equal(env.step(action).obs, again.step(action).obs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ["front"]}, "Hopper-v5: env.options.cameras: there is no 'front'; .*track"),
        ({"cameras": "track"}, "cameras='track': a list of names is needed"),
        ({"cameras": ["track"], "size": 0}, "size=0: pixels of a side are needed"),
        ({"cameras": ["track"], "size": [4, 4, 4]}, r"or \[height,width\]"),
        ({"cameras": ["track"], "backend": "native"}, "cameras is a rendering option"),
    ],
)
def test_a_camera_that_is_not_there_is_one_line(options: dict[str, Any], message: str) -> None:
    if options.get("backend") == "native" and not physics.available():
        pytest.skip("no native environments here")
    with pytest.raises(EnvError, match=message) as caught:
        make("Hopper-v5", 1, **options)
    assert "\n" not in str(caught.value)


def test_an_empty_list_of_cameras_is_none() -> None:
    """It was a traceback about arrays that cannot be joined."""
    env = make("Hopper-v5", 1, backend="gymnasium", cameras=[])
    plain = make("Hopper-v5", 1, backend="gymnasium")
    assert not env.obs_images and torch.equal(env.reset(3), plain.reset(3))


def test_what_has_no_model_has_no_cameras() -> None:
    with pytest.raises(EnvError, match="no model of MuJoCo's to be rendered"):
        make("Pendulum-v1", 1, cameras=["track"])


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which nothing can be rendered."""
    cameras.context.cache_clear()
    cameras.canvases.clear()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setitem(sys.modules, "mujoco.osmesa", None)
    yield
    monkeypatch.undo()
    cameras.context.cache_clear()


def test_a_machine_that_cannot_render_is_told_what_to_install(blind: None) -> None:
    with pytest.raises(EnvError, match="nothing can be rendered here .*libegl1.*MUJOCO_GL=osmesa"):
        make("Hopper-v5", 1, **HERE)


def test_worker_processes_show_and_encode_what_one_process_does() -> None:
    """Chunks at once, over the ends of episodes."""
    options = {**HERE, "max_episode_steps": 5}
    worlds = []
    for workers in (0, 1):
        inner = [make("Hopper-v5", 2, workers=workers, execute=3, **options) for _ in range(2)]
        encoded = Encoded(inner[1], 1)
        encoded.see = brightest
        pair = [ChunkEnv(env, execute=3, obs_steps=2, gamma=0.9) for env in (inner[0], encoded)]
        worlds.append(pair)
        assert inner[0].obs_images == {"track_image": (20, 20)}
    starts = [[env.reset(1) for env in pair] for pair in worlds]
    assert torch.equal(starts[0][0], starts[1][0]) and torch.equal(starts[0][1], starts[1][1])
    for count in range(4):
        action = torch.full((2, 3, 3), 0.2 * count)
        (one, seen), (two, again) = ([env.step(action) for env in pair] for pair in worlds)
        for name in ("obs", "next_obs", "reward", "truncated"):
            assert torch.equal(getattr(one, name), getattr(two, name))
            assert torch.equal(getattr(seen, name), getattr(again, name))
        wanted = brightest(one.obs.unflatten(1, (2, -1))).flatten(1)
        assert torch.equal(seen.obs, wanted)
    for env in (env for pair in worlds for env in pair):
        env.close()


def brightest(obs: torch.Tensor) -> torch.Tensor:
    """The numbers, and one of the image."""
    return torch.cat([obs[..., :11], obs[..., 11:].amax(-1, True)], -1)


def test_groups_of_geometries_can_be_hidden() -> None:
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><light pos='0 0 3'/><camera name='top' pos='0 0 2'/>"
        "<geom size='.5' group='0' rgba='1 0 0 1'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    shown, hidden = (Cameras(["top"], 8, groups).look(model, data) for groups in ((), (0,)))
    assert unpacked(shown, 8)[4, 4, 0] > 50 and unpacked(hidden, 8)[4, 4, 0] == 0


# ---- what nobody looks at is not drawn -----------------------------------------------------------

ENDING: dict[str, Any] = {
    "cameras": ["track"], "size": 12, "max_episode_steps": 11, "seed": 0,
    "healthy_angle_range": [-0.05, 0.05],
}  # fmt: skip
LASTING: dict[str, Any] = {**ENDING, "terminate_when_unhealthy": False}


class Drawing(GymnasiumVector):
    """Draws every step, as it is stepped one by one."""

    def ahead(self, action: Any, active: Any = None, last: int | None = None) -> None:
        return None


def chunks(env: Any, count: int) -> torch.Tensor:
    """Random chunks [count, N, 4, Da]."""
    generator = torch.Generator().manual_seed(2)
    return 2 * torch.rand((count, env.num_envs, 4, env.action_dim), generator=generator) - 1


def compared(drawing: Any, *others: Any, obs_steps: int, count: int) -> Iterator[Any]:
    """Decisions of environments that draw everything, equal to those of others that do not."""
    drawn, *some = (
        ChunkEnv(env, execute=4, obs_steps=obs_steps, gamma=0.9) for env in (drawing, *others)
    )
    first = drawn.reset(3)
    assert all(torch.equal(env.reset(3), first) for env in some)
    masks = torch.Generator().manual_seed(1)
    for k, action in enumerate(chunks(drawing, count)):
        active = None if k % 3 else torch.rand(len(action), generator=masks) < 0.7
        step = drawn.step(action, active)
        assert all(same(env.step(action, active), step) for env in some)
        yield step
    for env in some:
        env.close()


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for every image that is drawn."""
    found: list[Any] = []
    draw = Canvas.draw

    def counted(canvas: Canvas, scene: Any) -> np.ndarray:
        found.append(scene)
        return draw(canvas, scene)

    monkeypatch.setattr(Canvas, "draw", counted)
    return found


@pytest.mark.parametrize("obs_steps", [1, 2])
def test_what_is_looked_at_is_drawn_however_an_episode_ends(
    obs_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within chunks by either flag, and by a guard; here and in worker processes."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    drawn, ends = Drawing(CRACKED, 3, nan_at=7, **ENDING), set()
    some = [make(CRACKED, 3, nan_at=7, workers=n, execute=4, **ENDING) for n in (0, 2)]
    for step in compared(drawn, *some, obs_steps=obs_steps, count=30):
        for i in np.flatnonzero((step.terminated | step.truncated).numpy()).tolist():
            how = "terminated" if step.terminated[i] else "truncated"
            ends.add((int(step.frames[i]), how if step.valid[i] else "broken"))
        for obs in (step.obs, step.next_obs):
            assert obs.unflatten(1, (obs_steps, -1))[..., 11:].min() >= 0
    assert {(at, "terminated") for at in range(1, 5)} < ends
    assert {(3, "truncated"), (3, "broken")} < ends


@pytest.mark.parametrize("obs_steps", [1, 2])
def test_of_a_chunk_as_many_images_are_drawn_as_are_looked_at(
    obs_steps: int, drawings: list[Any]
) -> None:
    env = ChunkEnv(make("Hopper-v5", 3, **ENDING), execute=4, obs_steps=obs_steps, gamma=0.9)
    drawings.clear()
    env.reset()
    assert len(drawings) == 3
    frames = 0
    for action in chunks(env, 20):
        drawings.clear()
        step = env.step(action)
        ended = int((step.terminated | step.truncated).sum())
        assert len(drawings) == int(step.frames.clamp(max=obs_steps).sum()) + ended
        frames += int(step.frames.sum())
    assert frames > 150


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_that_nobody_looks_at_have_numbers_and_no_images(workers: int) -> None:
    env = make("Hopper-v5", 2, workers=workers, execute=4, **LASTING)
    drawn = Drawing("Hopper-v5", 2, **LASTING)
    env.reset()
    drawn.reset()
    action = chunks(env, 1)[0]
    steps = env.ahead(action, None, 2)
    assert steps is not None and len(steps) == 4
    for k, step in enumerate(steps):
        whole = drawn.step(action[:, k]).obs
        assert torch.equal(step.obs[:, :11], whole[:, :11])
        assert torch.equal(step.obs, whole) if k > 1 else (step.obs[:, 11:] < 0).all()
    env.close()


def test_a_kept_encoder_sees_what_is_looked_at(drawings: list[Any]) -> None:
    weight, batches = torch.randn(144, 5, generator=torch.Generator().manual_seed(0)), []

    def see(obs: torch.Tensor) -> torch.Tensor:
        batches.append(len(obs))
        return torch.cat([obs[:, :11], obs[:, 11:] @ weight], 1)

    for obs_steps in (1, 2):
        some, drawn = (
            Encoded(kind, 5)
            for kind in (make("Hopper-v5", 3, **ENDING), Drawing("Hopper-v5", 3, **ENDING))
        )
        some.see = drawn.see = see
        assert sum(1 for _ in compared(drawn, some, obs_steps=obs_steps, count=8)) == 8
    lasting = Encoded(make("Hopper-v5", 3, **LASTING), 5)
    lasting.see = see
    env = ChunkEnv(lasting, execute=4, obs_steps=1, gamma=0.9)
    env.reset()
    batches.clear()
    env.step(chunks(env, 1)[0])
    assert batches == [3]


def test_whoever_keeps_every_step_has_every_image(drawings: list[Any]) -> None:
    env = ChunkEnv(make("Hopper-v5", 2, **ENDING), execute=4, obs_steps=1, gamma=0.9)
    plan = iter(chunks(env, 60))
    recording = collect(env, lambda obs: next(plan), steps=None, episodes=4, seed=0)
    assert recording.obs[:, 11:].min() >= 0
    assert len({row.tobytes() for row in recording.obs[:, 11:]}) > 0.9 * len(recording.obs)


def test_an_episode_that_is_played_again_is_drawn_where_it_goes_on(
    drawings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    first, again = (
        ChunkEnv(make(CRACKED, 2, **LASTING), execute=4, obs_steps=1, gamma=0.9) for _ in range(2)
    )
    first.reset(1)
    plan = chunks(first, 4)
    for action in plan[:2]:
        first.step(action)
    drawings.clear()
    assert again.load_state_dict(first.state_dict()) is None
    assert len(drawings) == 2 * 2  # where each began, and where it is
    for action in plan[2:]:
        assert same(first.step(action), again.step(action))


def test_what_may_look_at_images_itself_is_shown_all() -> None:
    env = families.make("Hopper-v5", HERE)
    assert families.cameras_of(env) is env.cameras  # type: ignore[attr-defined]
    assert families.cameras_of(gymnasium.wrappers.TimeLimit(env, 5)) is not None
    assert families.cameras_of(gymnasium.wrappers.TransformReward(env, float)) is None
    assert families.cameras_of(env.env) is None  # type: ignore[attr-defined]


# ---- manipulation --------------------------------------------------------------------------------

LIFT: dict[str, Any] = {"cameras": ["agentview", "robot0_eye_in_hand"], "size": 48}


def test_robosuite_s_images_are_those_of_its_own_sensors() -> None:
    skip_where_it_cannot_run("lift")
    from rheo.envs.manipulation import robosuite_tasks
    from rheo.envs.seeded import drawing_from

    env = make("robosuite/Lift-v0", 1, **LIFT)
    assert list(env.obs_images) == ["agentview_image", "robot0_eye_in_hand_image"]
    assert list(env.obs_parts or ())[:4] == LOW_DIM
    obs = env.reset(4)
    settings = robosuite_tasks.arguments("Lift", None) | {"hard_reset": False}
    with drawing_from(np.random.MT19937(0)):
        own = robosuite_tasks.package().make(
            "Lift", **settings | {
                "has_offscreen_renderer": True, "use_camera_obs": True, "camera_heights": 48,
                "camera_widths": 48, "camera_names": LIFT["cameras"],
            },
        )  # fmt: skip
    with drawing_from(np.random.MT19937(4)):
        wanted = own.reset()
    for i, name in enumerate(env.obs_images):
        pixels = obs[0, 19 + 48 * 48 * i : 19 + 48 * 48 * (i + 1)].numpy()
        theirs = wanted[name][::-1].astype(int)  # they are upside down, as OpenGL has them
        mine = unpacked(pixels, 48).astype(int)
        assert np.abs(mine - theirs).mean() < 4 < np.abs(mine[::-1] - theirs).mean()
    own.close()


def test_robosuite_s_images_are_drawn_where_they_are_looked_at(drawings: list[Any]) -> None:
    skip_where_it_cannot_run("lift")
    from rheo.envs.manipulation.robosuite_tasks import Robosuite

    class Mine(Robosuite):
        """Of somebody who may look at images."""

    options = {**LIFT, "size": 16, "max_episode_steps": 11, "seed": 0}
    task = "robosuite/Lift-v0"
    for obs_steps in (1, 2):
        some = make(task, 2, **options)
        steps = list(compared(Drawing(task, 2, **options), some, obs_steps=obs_steps, count=5))
        assert any((step.truncated & (step.frames == 3)).any() for step in steps)
    env = ChunkEnv(make(task, 2, **options), execute=4, obs_steps=1, gamma=0.9)
    env.reset()
    drawings.clear()
    env.step(chunks(env, 1)[0])
    assert len(drawings) == 2 * 2
    assert families.cameras_of(Mine("Lift", cameras=["agentview"], size=16)) is None


def test_keys_of_a_robomimic_file_choose_the_cameras() -> None:
    skip_where_it_cannot_run("lift")
    keys = ["robot0_eef_pos", "agentview_image", "robot0_gripper_qpos"]
    env = make("robosuite/Lift-v0", 1, obs_keys=keys, size=[16, 24])
    assert env.obs_parts == {"robot0_eef_pos": 3, "robot0_gripper_qpos": 2, "agentview_image": 384}
    assert env.obs_images == {"agentview_image": (16, 24)}
    with pytest.raises(EnvError, match="cameras: there is no 'wrist'; it has frontview, .*hand"):
        make("robosuite/Lift-v0", 1, cameras=["wrist"])


def test_a_file_with_images_brings_the_environment_that_shows_them(tmp_path: Path) -> None:
    skip_where_it_cannot_run("lift")
    args = {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}
    with h5py.File(tmp_path / "lift.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(args)
        file["data/demo_0/obs/robot0_eef_pos"] = np.random.default_rng(0).normal(size=(4, 3))
        file["data/demo_0/obs/agentview_image"] = np.zeros((4, 16, 16, 3), np.uint8)
        file["data/demo_0/actions"] = np.zeros((4, 7))
    keys = "source.obs_keys=[robot0_eef_pos,agentview_image]"
    config = compose(["algo=bc", f"data={tmp_path / 'lift.hdf5'}", keys])
    env = make_env(config, 1)
    assert env is not None and env.obs_dim == 3 + 256
    assert env.env.obs_images == {"agentview_image": (16, 16)}


def test_fetch_and_metaworld_have_cameras_too() -> None:
    skip_where_it_cannot_run("fetch_push")
    env = make("FetchPush-v4", 1, cameras=["external_camera_0"], size=16)
    assert env.obs_parts == {"observation": 25, "desired_goal": 3, "external_camera_0_image": 256}
    shown = image(env.reset(0), 16, 16)
    assert shown.std() > 10
    pytest.importorskip("metaworld")
    env = make("metaworld/reach-v3", 1, cameras=["corner"], size=16)
    assert image(env.reset(0), 16, 16).std() > 10 and env.obs_dim == 39 + 256


def test_an_image_can_be_all_that_is_observed() -> None:
    whole = make("Hopper-v5", 2, **HERE)
    seen = make("Hopper-v5", 2, obs_keys=["track_image"], **HERE)
    assert seen.obs_parts == {"track_image": 400} and seen.obs_images == {"track_image": (20, 20)}
    assert torch.equal(seen.reset(3), whole.reset(3)[:, 11:])
    action = torch.full((2, 3), 0.7)
    assert torch.equal(seen.step(action).obs, whole.step(action).obs[:, 11:])
    envs: list[Any] = [ChunkEnv(one, execute=3, obs_steps=1, gamma=0.9) for one in (seen, whole)]
    here, there = (env.step(torch.full((2, 3, 3), -0.3)).obs for env in envs)
    assert torch.equal(here, there[:, 11:])  # those between were not drawn
    with pytest.raises(EnvError, match="leaves out track_image, which is drawn: name it, or"):
        make("Hopper-v5", 1, obs_keys=["observation"], **HERE)


def test_keys_of_a_file_of_a_script_choose_what_its_environment_shows(tmp_path: Path) -> None:
    """Fetch's was refused: it observed all, and the data less."""
    skip_where_it_cannot_run("fetch_push")
    file, look = tmp_path / "a.hdf5", "external_camera_0"
    words = ["collect", "set=scripted", "env=fetch_push", "episodes=2", f"out={file}", "noise=0.1"]
    more = ["layout=robomimic", f"env.options.cameras=[{look}]", "env.options.size=16"]
    assert main([*words, *more]) == 0
    given = ["algo=bc", f"data={file}"]
    env = make_env(compose([*given, f"data.obs_keys=[desired_goal,{look}_image]"]), 1)
    assert env is not None and env.env.obs_parts == {"desired_goal": 3, f"{look}_image": 256}
    env = make_env(compose([*given, "data.obs_keys=[desired_goal,observation]"]), 1)
    assert env is not None and env.env.obs_parts == {"desired_goal": 3, "observation": 25}
    env = make_env(compose(given), 1)
    assert env is not None and list(env.env.obs_parts or ())[2:] == [f"{look}_image"]


def test_cameras_that_the_keys_of_a_file_leave_out_are_not_drawn(tmp_path: Path) -> None:
    kwargs = {"cameras": ["track", "side"], "size": 16, "frame_skip": 2}
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        group = file.create_group("data")
        group.attrs["env_args"] = json.dumps({"env_name": "Hopper-v5", "env_kwargs": kwargs})
        group.attrs["dones_are"] = DONES
        file["data/demo_0/obs/observation"] = np.zeros((4, 11))
        for name in ("track", "side"):
            file[f"data/demo_0/obs/{name}_image"] = np.zeros((4, 16, 16, 3), np.uint8)
        file["data/demo_0/actions"] = np.zeros((4, 3))
    path = str(tmp_path / "a.hdf5")
    told = played_in(path, ["observation", "track_image"]).options
    assert told == {
        **{"cameras": ["track"], "size": 16, "frame_skip": 2},
        "obs_keys": ["observation", "track_image"],
    }
    assert played_in(path, ["observation"]).options == {
        "frame_skip": 2,
        "obs_keys": ["observation"],
    }
    assert played_in(path).options == kwargs


def test_scripts_record_what_cameras_see(tmp_path: Path) -> None:
    skip_where_it_cannot_run("lift")
    words = ["collect", "set=scripted", "env=lift", "episodes=2", f"out={tmp_path / 'a.hdf5'}"]
    assert main([*words, "env.options.cameras=[robot0_eye_in_hand]", "env.options.size=16"]) == 0
    recording = read(str(tmp_path / "a.hdf5"))
    assert recording.images == {"robot0_eye_in_hand_image": [16, 16]}
    env = make_env(compose(["algo=bc", f"data={tmp_path / 'a.hdf5'}"]), 1)
    assert env is not None and env.env.obs_images == {"robot0_eye_in_hand_image": (16, 16)}
    assert list(env.env.obs_parts or ()) == recording.about["obs_keys"]
