"""DeepMind Control: against formulas written out for one simulation, and against dm_control."""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rheo.envs import families
from rheo.envs.data.catalogue import WORLDS
from rheo.envs.mujoco import control, dmc, physics
from rheo.envs.mujoco.control_tasks import TASKS
from rheo.envs.mujoco.physics import mujoco
from rheo.envs.suites import make
from rheo.envs.vector import VectorEnv
from rheo.errors import EnvError

if importlib.util.find_spec("dm_control") is None:
    pytest.skip("dm_control's model files are not installed", allow_module_level=True)

IDS = list(TASKS)
BACKENDS = [*(["native"] if physics.available() else []), "gymnasium"]
each = pytest.mark.parametrize("env_id", IDS)
both = pytest.mark.parametrize("backend", BACKENDS)


def made(env_id: str, count: int, backend: str, seed: int = 0, **options: Any) -> VectorEnv:
    return make(env_id, count, seed=seed, backend=backend, dtype=torch.float64, **options)


def randoms(env: VectorEnv, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs, env.action_dim)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


# ---- the soft indicator -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fall", "at_margin", "half"),
    [
        (control.gaussian, 0.1, 0.1**0.25),
        (control.gaussian, 0.7, 0.7**0.25),
        (control.linear, 0.5, 0.75),
        (control.linear, 0.0, 0.5),
        (control.quadratic, 0.0, 0.75),
        (control.quadratic, 0.2, 0.8),
    ],
)
def test_tolerance_is_one_inside_and_what_it_says_at_its_margin(
    fall: Any, at_margin: float, half: float
) -> None:
    x = np.array([1.0, 2.0, 3.0, 5.0, -1.0, 4.0, 0.0])
    value = control.tolerance(x, 1, 3, 2, at_margin, fall)
    expected = [1, 1, 1, at_margin, at_margin, half, half]
    assert np.allclose(value, expected, rtol=0, atol=1e-15)
    one_sided = control.tolerance(np.array([1.0, 1e9, 0.0]), 1, np.inf, 1, at_margin, fall)
    assert np.allclose(one_sided, [1, 1, at_margin], rtol=0, atol=1e-15)


def test_tolerance_falls_to_zero_and_without_a_margin_at_once() -> None:
    far = np.array([10.0, -10.0])
    for fall in (control.linear, control.quadratic):
        assert not control.tolerance(far, margin=1, fall=fall).any()
    x = np.array([0.99, 1.0, 2.0, 2.01])
    assert control.tolerance(x, 1, 2).tolist() == [0, 1, 1, 0]


# ---- the formulas, one simulation at a time -----------------------------------------------------


def soft(x: float, low: float, high: float, margin: float, at: float, kind: str) -> float:
    """dm_control's definition: the sigmoid of the distance, scaled so that it is `at` at 1."""
    if low <= x <= high:
        return 1.0
    d = (low - x if x < low else x - high) / margin
    if kind == "gaussian":
        return float(np.exp(-0.5 * (d * np.sqrt(-2 * np.log(at))) ** 2))
    scaled = d * (1 - at if kind == "linear" else np.sqrt(1 - at))
    if abs(scaled) >= 1:
        return 0.0
    return 1 - scaled if kind == "linear" else 1 - scaled**2


INF = float("inf")
Seen = tuple[list[Any], float]


def speed_of(d: Any) -> float:
    return d.sensor("torso_subtreelinvel").data[0]


def cheetah(d: Any) -> Seen:
    return [d.qpos[1:], d.qvel], soft(speed_of(d), 10, INF, 10, 0, "linear")


def walker(d: Any, full: float) -> Seen:
    torso = d.body("torso")
    matrices = [d.body(i).xmat for i in range(1, d.xmat.shape[0])]
    stand = 3 * soft(torso.xpos[2], 1.2, INF, 0.6, 0.1, "gaussian")
    stand = (stand + (1 + torso.xmat[8]) / 2) / 4
    move = soft(speed_of(d), full, INF, full / 2, 0.5, "linear")
    angles = [value for m in matrices for value in (m[0], m[2])]
    return [angles, torso.xpos[2], d.qvel], stand * (5 * move + 1) / 6


def hopper(d: Any) -> Seen:
    touch = [np.log1p(d.sensor(name).data[0]) for name in ("touch_toe", "touch_heel")]
    height = d.body("torso").xipos[2] - d.body("foot").xipos[2]
    hop = soft(speed_of(d), 2, INF, 1, 0.5, "linear")
    return [d.qpos[1:], d.qvel, touch], hop if 0.6 <= height <= 2 else 0.0


def cartpole(d: Any) -> Seen:
    (x, angle), speed = d.qpos, d.qvel[1]
    gentle = (4 + soft(d.ctrl[0], 0, 0, 1, 0, "quadratic")) / 5
    slow = (1 + soft(speed, 0, 0, 5, 0.1, "gaussian")) / 2
    centred = (1 + soft(x, 0, 0, 2, 0.1, "gaussian")) / 2
    reward = (np.cos(angle) + 1) / 2 * gentle * slow * centred
    return [x, np.cos(angle), np.sin(angle), d.qvel], reward


def finger_seen(d: Any) -> list[Any]:
    tip = (d.site("tip").xpos - d.body("spinner").xpos)[[0, 2]]
    joints = [d.joint(name) for name in ("proximal", "distal", "hinge")]
    touch = [np.log1p(d.sensor(name).data[0]) for name in ("touchtop", "touchbottom")]
    angles = [joint.qpos[0] for joint in joints[:2]]
    return [angles, tip, [joint.qvel[0] for joint in joints], touch]


def finger_spin(d: Any) -> Seen:
    return finger_seen(d), float(d.joint("hinge").qvel[0] <= -15)


def finger_turn(d: Any) -> Seen:
    goal = d.userdata - d.body("spinner").xpos[[0, 2]]
    seen = finger_seen(d)
    gap = float(np.hypot(*(goal - seen[1]))) - 0.03
    return [*seen, goal, gap], float(gap <= 0)


def fish_upright(d: Any) -> Seen:
    upright = d.body("torso").xmat[8]
    return [d.qpos[7:], upright, d.qvel], soft(upright, 1, 1, 1, 0.1, "gaussian")


def fish_swim(d: Any) -> Seen:
    mouth, upright = d.geom("mouth"), d.body("torso").xmat[8]
    goal = mouth.xmat.reshape(3, 3).T @ (d.userdata - mouth.xpos)
    inside = soft(float(np.linalg.norm(goal)), 0, 0.045, 0.09, 0.1, "gaussian")
    return [d.qpos[7:], upright, goal, d.qvel], (7 * inside + (upright + 1) / 2) / 8


def humanoid(d: Any) -> Seen:
    torso, head = d.body("torso"), d.body("head").xpos[2]
    turn = torso.xmat.reshape(3, 3).T
    names = ("left_hand", "left_foot", "right_hand", "right_foot")
    limbs = [turn @ (d.body(name).xpos - torso.xpos) for name in names]
    velocity = d.sensor("torso_subtreelinvel").data
    stand = soft(head, 1.4, INF, 0.35, 0.1, "gaussian")
    stand *= soft(torso.xmat[8], 0.9, INF, 1.9, 0, "linear")
    gentle = np.mean([soft(u, 0, 0, 1, 0, "quadratic") for u in d.ctrl])
    move = soft(float(np.hypot(velocity[0], velocity[1])), 1, INF, 1, 0, "linear")
    seen = [d.qpos[7:], head, *limbs, torso.xmat[6:], velocity, d.qvel]
    return seen, (4 + gentle) / 5 * stand * (5 * move + 1) / 6


ORACLES: dict[str, Callable[[Any], Seen]] = {
    "cheetah-run": cheetah,
    "walker-walk": lambda d: walker(d, 1.0),
    "walker-run": lambda d: walker(d, 8.0),
    "hopper-hop": hopper,
    "cartpole-swingup": cartpole,
    "finger-spin": finger_spin,
    "finger-turn_hard": finger_turn,
    "fish-swim": fish_swim,
    "fish-upright": fish_upright,
    "humanoid-walk": humanoid,
}
SECONDS = {"cheetah": 0.01, "walker": 0.025, "hopper": 0.02, "cartpole": 0.01} | {
    **{"finger": 0.02, "fish": 0.04, "humanoid": 0.025}
}


def short(env_id: str) -> str:
    return env_id.removeprefix("dm_control/").removesuffix("-v0")


def promising(env_id: str, model: Any, rng: np.random.Generator) -> Any:
    """MjData in a state near which the reward is neither always 0 nor always 1."""
    name, data = short(env_id), mujoco.MjData(model)
    if name.startswith("fish"):
        data.qpos[3:7] = np.array([1, 0, 0, 0]) + rng.normal(size=4) / 2
    else:
        data.qpos[:] += rng.normal(size=model.nq) / 20
    data.qvel[:] = rng.normal(size=model.nv) / (10 if name.startswith("fish") else 1)
    moves = {"cheetah": 5, "walker": 1, "hopper": 2, "humanoid": 0.5, "finger": -20}
    along = {"walker": 1, "finger": 2}  # the joint that moves
    domain = name.partition("-")[0]
    data.qvel[along.get(domain, 0)] += moves.get(domain, 0)
    if name == "cartpole-swingup":
        data.qpos[1] = rng.uniform(-3, 3)
    mujoco.mj_forward(model, data)
    if name == "finger-turn_hard":
        data.qvel[2] *= 0.1
        data.userdata[:] = data.site("tip").xpos[[0, 2]] + rng.normal(size=2) / 30
    if name == "fish-swim":
        data.userdata[:] = data.geom("mouth").xpos + rng.normal(size=3) / 10
    return data


def put(env: Any, index: int, data: Any) -> None:
    """Make a simulation go on from an MjData's state."""
    if env.backend == "native":
        row = env._physics.state[index]
        mujoco.mj_getState(env._task.model, data, row, physics.INTEGRATION)
        return
    row = np.zeros(mujoco.mj_stateSize(env._envs[index].unwrapped.model, physics.INTEGRATION))
    inner = env._envs[index].unwrapped
    mujoco.mj_getState(inner.model, data, row, physics.INTEGRATION)
    mujoco.mj_setState(inner.model, inner.data, row, physics.INTEGRATION)


@each
@both
def test_a_batch_equals_a_plain_loop_with_the_formulas_written_out(
    env_id: str, backend: str
) -> None:
    """Also where a third of the rows is left out of every step."""
    env, rng = made(env_id, 4, backend), np.random.default_rng(0)
    env.reset()
    model = dmc.load(TASKS[env_id])
    plain = [promising(env_id, model, rng) for _ in range(env.num_envs)]
    for i, data in enumerate(plain):
        put(env, i, data)
    count = round(SECONDS[short(env_id).partition("-")[0]] / model.opt.timestep)
    rewards = []
    for action in randoms(env, 40):
        active = rng.random(env.num_envs) < 2 / 3
        step = env.step(action, torch.from_numpy(active))
        assert np.array_equal(step.valid.numpy(), active)
        for i in np.flatnonzero(active):
            plain[i].ctrl[:] = action[i].numpy()
            mujoco.mj_step(model, plain[i], nstep=count)
            mujoco.mj_step1(model, plain[i])
            seen, reward = ORACLES[short(env_id)](plain[i])
            flat = np.concatenate([np.atleast_1d(part) for part in seen])
            assert np.allclose(step.obs[i].numpy(), flat, rtol=1e-9, atol=1e-9)
            assert abs(float(step.reward[i]) - reward) <= 1e-12
            rewards.append(reward)
    assert 0 <= min(rewards) < max(rewards) <= 1
    assert 0.02 < np.mean(rewards) < 0.98


# ---- resets -------------------------------------------------------------------------------------


def uniformity(values: NDArray, low: float, high: float) -> float:
    """Kolmogorov's distance from the uniform distribution, in units of 1/sqrt(n)."""
    share = (np.sort(values) - low) / (high - low)
    steps = np.arange(len(values) + 1) / len(values)
    distance = np.maximum(np.abs(share - steps[:-1]), np.abs(share - steps[1:])).max()
    return float(distance * np.sqrt(len(values)))


def starts(env_id: str, count: int, see: Callable[[Any], Any]) -> NDArray:
    """What is seen of the MjData of so many new episodes."""
    env: Any = made(env_id, 1, "gymnasium", 3)
    found = []
    for _ in range(count):
        env.reset()
        found.append(np.array(see(env._envs[0].unwrapped.data)))
    return np.array(found)


def positions(data: Any) -> NDArray:
    return data.qpos


@pytest.mark.parametrize("name", ["walker-run", "hopper-hop"])
def test_joints_begin_uniform_within_their_limits(name: str) -> None:
    env_id = f"dm_control/{name}-v0"
    model, qpos = dmc.load(TASKS[env_id]), starts(env_id, 300, positions)
    assert not starts(env_id, 10, lambda data: data.qvel).any()
    assert not qpos[:, :2].any()
    for joint in range(2, model.njnt):
        limits = model.jnt_range[joint] if model.jnt_limited[joint] else (-np.pi, np.pi)
        assert uniformity(qpos[:, joint], *limits) < 1.7


@pytest.mark.parametrize("name", ["finger-spin", "humanoid-walk"])
def test_nothing_touches_at_the_start(name: str) -> None:
    env_id = f"dm_control/{name}-v0"
    assert not starts(env_id, 60, lambda data: data.ncon).any()
    poses = starts(env_id, 60, positions)
    assert poses.std(0)[-3:].min() > 0.3
    if name == "humanoid-walk":
        turned = poses[:, 3:7]
        assert np.allclose(np.linalg.norm(turned, axis=1), 1) and turned.min() >= 0
        assert (poses[:, :3] == [0, 0, 1.5]).all()


def test_the_cheetah_begins_at_rest_on_its_feet() -> None:
    seen = starts(IDS[0], 20, lambda data: [data.time, data.ncon, np.abs(data.qvel).max()])
    assert IDS[0] == "dm_control/cheetah-run-v0"
    assert not seen[:, 0].any() and (seen[:, 1] > 0).all() and (seen[:, 2] < 3).all()
    assert starts(IDS[0], 20, positions)[:, 0].std() > 1e-3


def test_the_pole_hangs_and_nearly_rests() -> None:
    env_id = "dm_control/cartpole-swingup-v0"
    state = starts(env_id, 400, lambda data: [*data.qpos, *data.qvel])
    assert np.abs(state.mean(0) - [0, np.pi, 0, 0]).max() < 0.002
    assert np.abs(state.std(0) - 0.01).max() < 0.0015


def test_the_fish_lies_anyhow_and_its_target_in_a_box() -> None:
    env_id = "dm_control/fish-swim-v0"
    up = starts(env_id, 300, lambda data: data.body("torso").xmat[8])
    assert uniformity(up, -1, 1) < 1.7  # as of a uniform rotation
    drawn = starts(env_id, 300, lambda data: [*data.userdata, *data.qpos[7:]])
    for column, (low, high) in zip(
        drawn.T, [(-0.4, 0.4), (-0.4, 0.4), (0.1, 0.3), *[(-0.2, 0.2)] * 7], strict=True
    ):
        assert uniformity(column, low, high) < 1.7


def test_the_place_to_turn_to_is_anywhere_on_the_circle_of_the_tip() -> None:
    def seen(data: Any) -> Any:
        hinge = data.body("spinner").xpos
        reach = np.linalg.norm(data.site("tip").xpos - hinge)
        return [*(data.userdata - hinge[[0, 2]]), reach]

    x, z, reach = starts("dm_control/finger-turn_hard-v0", 300, seen).T
    assert np.allclose(np.hypot(x, z), reach)
    assert uniformity(np.arctan2(x, z), -np.pi, np.pi) < 1.7


def test_the_body_turns_freely_only_where_it_has_to_spin() -> None:
    for name, damping in (("finger-spin", 0.03), ("finger-turn_hard", 0.5)):
        model = dmc.load(TASKS[f"dm_control/{name}-v0"])
        assert model.dof_damping[model.joint("hinge").dofadr] == damping


# ---- the contract -------------------------------------------------------------------------------


@each
@both
def test_an_episode_is_a_thousand_steps_and_its_end_a_truncation(env_id: str, backend: str) -> None:
    env = made(env_id, 1, backend)
    assert env.max_steps == 1000
    assert WORLDS[env_id] == (env.obs_dim, env.action_dim, env.max_steps)
    assert env.obs_parts and sum(env.obs_parts.values()) == env.obs_dim
    assert (env.action_low == -1).all() and (env.action_high == 1).all()
    cut = made(env_id, 2, backend, max_episode_steps=3)
    cut.reset()
    for k, action in enumerate(randoms(cut, 7), start=1):
        step = cut.step(action)
        assert step.truncated.tolist() == [k % 3 == 0] * 2
        assert not step.terminated.any() and step.valid.all()
        assert bool((step.obs != step.final_obs).any()) == (k % 3 == 0)


@pytest.mark.parametrize("name", ["finger-turn_hard", "fish-swim", "hopper-hop", "cheetah-run"])
@both
def test_a_saved_state_goes_on_to_the_last_bit(name: str, backend: str) -> None:
    first, second = (made(f"dm_control/{name}-v0", 2, backend, max_episode_steps=12) for _ in "ab")
    first.reset()
    second.reset(99)
    actions = randoms(first, 40)
    for action in actions[:9]:
        first.step(action)
    assert second.load_state_dict(first.state_dict()) is None
    for action in actions[9:]:
        one, two = first.step(action), second.step(action)
        assert torch.equal(one.obs, two.obs) and torch.equal(one.reward, two.reward)


@pytest.mark.parametrize("name", ["cheetah-run", "finger-turn_hard"])
@both
def test_a_simulation_that_blows_up_is_cut_and_begins_anew(name: str, backend: str) -> None:
    env: Any = made(f"dm_control/{name}-v0", 2, backend)
    env.reset()
    data = mujoco.MjData(dmc.load(TASKS[env.id]))
    data.qvel[:] = 1e12
    put(env, 1, data)
    step = env.step(torch.zeros(2, env.action_dim))
    assert step.valid.tolist() == [True, False] and step.truncated.tolist() == [False, True]
    assert env.counters["physics_resets"] == 1 and step.reward[1] == 0
    assert step.obs.isfinite().all() and step.obs.abs().max() < 100
    assert env.step(torch.zeros(2, env.action_dim)).valid.all()


@pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
def test_the_batch_is_chosen_and_gives_what_the_loop_gives() -> None:
    env_id = "dm_control/walker-walk-v0"
    assert make(env_id, 1).backend == "native"
    runs = []
    for backend, threads in (("native", 1), ("native", 2), ("gymnasium", 0)):
        env = make(env_id, 3, seed=5, backend=backend, threads=threads, max_episode_steps=20)
        first = env.reset()
        runs.append(torch.stack([first, *(env.step(a).obs for a in randoms(env, 50).float())]))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_without_the_package_the_command_that_adds_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    families.register(IDS[0])
    monkeypatch.delitem(gymnasium.registry, IDS[0])
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "dm_control" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(EnvError, match=r"missing: pip install .*'rheo-rl\[dmc\]'$"):
        make(IDS[0], 1)


def test_other_tasks_of_the_suite_are_refused_with_the_nearest_name() -> None:
    for name, near in (("cheetah-walk", "cheetah-run"), ("finger-turn_easy", "finger-turn_hard")):
        with pytest.raises(EnvError, match=f"unknown environment .*dm_control/{near}-v0"):
            make(f"dm_control/{name}-v0", 1)
    with pytest.raises(EnvError, match="no option 'frame_skip'|refuses its options"):
        make(IDS[0], 1, frame_skip=2)


# ---- dm_control itself --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite() -> Any:
    """dm_control's suite, where its physics runs with this MuJoCo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from dm_control import suite as found  # pyright: ignore[reportMissingImports]

            found.load("cheetah", "run")
        except Exception as error:  # noqa: BLE001 - whatever its physics stumbles over
            pytest.skip(f"dm_control does not run with MuJoCo {mujoco.__version__}: {error}")
    return found


def same_draws(env: Any, seed: int) -> None:
    """dm_control's kind of generator in place of gymnasium's."""
    env.reset()  # or the first reset would seed them again
    streams = [np.random.RandomState(seed + i) for i in range(env.num_envs)]
    if env.backend == "native":
        env._rng = streams
        return
    for one, stream in zip(env._envs, streams, strict=True):
        one.unwrapped.np_random = stream


@each
@both
def test_two_episodes_equal_dm_control(suite: Any, env_id: str, backend: str) -> None:
    domain, task = short(env_id).split("-")
    env = made(env_id, 2, backend)
    same_draws(env, 7)
    obs = env.reset().numpy()
    theirs = [suite.load(domain, task, task_kwargs={"random": 7 + i}) for i in range(2)]
    begun = [flat(one.reset()) for one in theirs]
    worst = float(np.abs(obs - begun).max())
    for k, action in enumerate(randoms(env, 1200), start=1):
        step = env.step(action)
        for i, one in enumerate(theirs):
            other = one.step(action[i].numpy())
            worst = max(worst, float(np.abs(step.final_obs[i].numpy() - flat(other)).max()))
            worst = max(worst, abs(float(step.reward[i]) - other.reward))
            assert other.last() == bool(step.truncated[i]) == (k == 1000)
            assert other.discount == 1 and not step.terminated[i]
            if other.last():
                again = flat(one.reset())
                worst = max(worst, float(np.abs(step.obs[i].numpy() - again).max()))
    print(f"{env_id} {backend}: largest difference {worst:.1e}")
    assert worst <= 1e-9


def flat(step: Any) -> NDArray:
    return np.concatenate([np.atleast_1d(part) for part in step.observation.values()])
