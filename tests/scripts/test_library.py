"""`import rheo`: train, load, act, evaluate; in other people's loops."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import rheo
from rheo.envs.noise import TILE, filled
from rheo.envs.rollout import evaluate
from rheo.errors import RheoError
from rheo.scripts.config.top import EVAL_SEED
from rheo.scripts.evaluate import made
from rheo.scripts.fast import fast_deploy
from rheo.scripts.store.run import Run

TINY: dict[str, Any] = {
    **{"policy.net.width": 16, "policy.net.depth": 1, "critic.width": 16},
    **{"source.batch_size": 8, "source.warmup": 20, "env.num_envs": 2},
}
PENDULUM = "InvertedPendulum-v5"
CHUNKS = {"env.execute": 3, "env.obs_steps": 2}


def trained(**more: Any) -> Run:
    """RFM in chunks of 4, of which 3 are executed, and two observations of history."""
    settings = {"algo": "rfm", "env": "inverted_pendulum", "steps": 60, "episodes": 1, "horizon": 4}
    return rheo.train(overrides=TINY | CHUNKS, **(settings | more))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("library")
    return str(trained(name=str(folder / "r")).path)


def rollouts(policy: rheo.Policy, count: int, rounds: int) -> list[tuple[int, float, int]]:
    """Rows, returns and lengths of the first episodes of gymnasium environments side by side.

    A row that is over begins the next episode at once, the others go on.
    """
    envs = [gymnasium.make(PENDULUM) for _ in range(count)]
    obs = np.stack([env.reset(seed=EVAL_SEED + i)[0] for i, env in enumerate(envs)])
    totals, found = np.zeros((count, 2)), []
    while len(found) < rounds:
        action = policy.act(obs)
        for i, env in enumerate(envs):
            obs[i], reward, over, cut, _ = env.step(action[i].astype(np.float32))
            totals[i] += float(reward), 1
            if over or cut:
                found.append((i, float(totals[i, 0]), int(totals[i, 1])))
                totals[i], obs[i] = 0, env.reset()[0]
                policy.reset([i])
    return found


def test_rows_that_end_at_different_times_are_the_evaluation_s(run: str) -> None:
    opened = Run.open(run)
    algo, env = made(opened, 3)
    rows = evaluate(env, fast_deploy(algo, opened.config["fast"], TILE), 9, EVAL_SEED)
    found = rollouts(rheo.load(run), 3, 9)
    assert len({row.length for row in rows}) > 1
    for i in range(3):  # each row's own first episodes
        theirs = [(row.ret, row.length) for row in rows if row.env == i]
        mine = [(ret, length) for row, ret, length in found if row == i]
        assert mine[:2] == theirs[:2]


def test_a_base_s_plan_is_corrected_as_inside_the_environment(run: str, tmp_path: Path) -> None:
    """ResiP, whose head no longer gives zero: what is executed is what its policy gives."""
    dropped = ("critic.width", "source.batch_size", "source.warmup")
    tiny = {key: value for key, value in (TINY | CHUNKS).items() if key not in dropped}
    where = {"init": run, "name": str(tmp_path / "c"), "env": "inverted_pendulum"}
    corrected = rheo.train(algo="resip", steps=100, episodes=1, overrides=tiny, **where)
    policy = rheo.load(corrected)
    algo, env = made(Run.open(str(corrected.path)), 3)
    deploy = fast_deploy(algo, corrected.config["fast"], TILE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.algo.head.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    algo.head.load_state_dict(policy.algo.head.state_dict())
    world = algo.wrap(env, EVAL_SEED)
    world.own_noise(EVAL_SEED)
    obs, everyone, corrections = world.reset(EVAL_SEED), filled(np.arange(3)), []
    for _ in range(60):
        delta = deploy(obs[everyone], world.noise)[:3]
        corrections.append(delta)
        executed = (world.planned() + algo.residual_scale * delta[:, 0]).clamp(-1, 1)
        assert np.array_equal(policy.act(obs[:, 4:8].numpy()), 3 * executed.double().numpy())
        step = world.step(delta)
        obs = step.obs
        policy.reset((step.terminated | step.truncated).numpy())
    assert torch.stack(corrections).std() > 0.1 and int(world.noise.episode.max()) > 1


def test_four_lines_train_and_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy = rheo.load(trained())
    env = rheo.make_env("inverted_pendulum")
    action = policy.act(env.reset(seed=0)[0])
    assert action.shape == (1,) and env.action_space.contains(action.astype(np.float32))
    assert list(policy.action_low) == [-3] and policy.obs_parts == {"flat": 4}
    assert policy.evaluate(episodes=2)["eval/episodes"] == 2
    assert Path("runs/rfm-invertedpendulum-v5-s0/eval").is_dir()


def test_one_and_many_arrays_and_tensors_are_acted_on_alike(run: str) -> None:
    obs = np.random.default_rng(0).normal(size=(3, 4))
    many = rheo.load(run).act(obs)
    assert many.shape == (3, 1)
    assert np.array_equal(rheo.load(run).act(obs[0]), many[0])
    tensors = rheo.load(run).act({"flat": torch.from_numpy(obs)})
    assert isinstance(tensors, torch.Tensor) and tensors.dtype == torch.float32
    assert np.array_equal(tensors.numpy(), many.astype(np.float32))


def test_a_reset_begins_new_episodes_of_the_rows_that_it_names(run: str) -> None:
    policy, other, obs = rheo.load(run), rheo.load(run), np.full((2, 4), 0.1)
    first = policy.act(obs)
    assert np.array_equal(other.act(obs), first)
    policy.reset([1])
    action, undisturbed = policy.act(obs), other.act(obs)
    assert action[0] == undisturbed[0] and action[1] not in (undisturbed[1], first[1])
    with pytest.raises(ValueError, match="3 observations at once, and these episodes run 2"):
        policy.act(np.zeros((3, 4)))
    policy.reset()
    assert policy.act(np.zeros((3, 4))).shape == (3, 1)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(3), r"flat: \(3,\), and the policy reads 4 numbers"),
        (np.zeros((2, 5)), r"flat: \(2, 5\), and the policy reads 4 numbers"),
        ({"flatt": np.zeros(4)}, "no 'flat' in the observation; did you mean 'flatt'"),
    ],
)
def test_an_observation_of_another_size_is_named(run: str, obs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rheo.load(run).act(obs)


def test_it_is_a_policy_of_stable_baselines3(run: str, caplog: pytest.LogCaptureFixture) -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    env = monitor.Monitor(gymnasium.make(PENDULUM))
    returns, lengths = evaluation.evaluate_policy(
        rheo.load(run), env, n_eval_episodes=4, return_episode_rewards=True
    )
    assert len(returns) == len(lengths) == 4
    assert caplog.text.count("deterministic=True changes nothing") == 1


def test_what_the_command_line_refuses_is_an_exception() -> None:
    with pytest.raises(RheoError, match="algo=rfmm"):
        rheo.train(algo="rfmm", env="hopper")
    with pytest.raises(RheoError, match=r"policy\.stepz"):
        rheo.train(algo="rfm", env="hopper", policy={"stepz": 4})
    with pytest.raises(RheoError, match="no run at"):
        rheo.load("nothing/here")
    with pytest.raises(RheoError, match="no such environment; did you mean 'Hopper-v5'"):
        rheo.make_env("hoper")


def test_an_environment_s_options_stand_above_those_of_its_file() -> None:
    short = rheo.make_env("hopper", exclude_current_positions_from_observation=False)
    assert short.observation_space.shape == (12,)
    assert rheo.make_env("Hopper-v4").spec.id == "Hopper-v4"  # pyright: ignore[reportOptionalMemberAccess]


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import rheo, sys; dir(rheo); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        _ = rheo.trane  # pyright: ignore[reportAttributeAccessIssue]
