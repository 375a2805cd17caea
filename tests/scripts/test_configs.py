"""Every file of configs/ composes, builds and learns for a few updates."""

import json
import os
from pathlib import Path

import gymnasium
import pytest
import torch
from shipped import ACTING, TASKS, compares, skip_where_it_cannot_run

from rheo.envs.batch import Choice
from rheo.envs.chunk import ChunkEnv
from rheo.errors import RheoError
from rheo.scripts.assemble import assemble, make_env
from rheo.scripts.cli import main
from rheo.scripts.config.compose import HOME, compose

DATA = Path(os.environ.get("RHEO_DATA", Path(__file__).parents[3] / "shared" / "data"))
NETS = sorted(file.stem for file in (HOME / "policy" / "net").glob("*.yaml"))
SMALL_NET = {
    "mlp": ["width=16", "depth=1"],
    "mlp_small": ["width=16", "depth=1"],
    "gated": ["width=16", "depth=1"],
    "unet": ["width=16", "widths=[8,16]", "groups=4"],
    "transformer": ["width=16", "depth=1", "heads=2"],
}
# whose replays are warmed up by uniform actions
WARMED = (
    *("awm_q", "awm_q_tune", "dpmd", "flame", "fpmd", "qsm", "qvpo", "rfm", "rfm_box", "rfm_paper"),
    *("dacer", "sac", "sac_flow", "sdac", "td3", "crd", "dpo", "d3po"),
    *("branch", "b2", "g2rpo", "solrl", "talk2move", "tracerl"),
)
CHUNKS = ["horizon=4", "env.execute=2", "env.obs_steps=2"]


def without(words, prefix):
    return [word for word in words if not word.startswith(prefix)]


def learn(words, updates=6):
    """A few updates of an assembled experiment; losses stay finite and weights move."""
    config = compose(words)
    algo, source, sizes, _ = assemble(config)
    corrects = hasattr(algo, "residual_scale")  # one step at a time, seeing what is planned
    learner = algo.head if corrects else getattr(algo, "actor", algo.policy)  # others are frozen
    judging = {"reward_updates", "classifier_updates"} & vars(algo).keys()
    first = algo.needs_starts or judging
    learner = algo.critic if first else learner  # which judges first, or only
    for part in ("attributes", "way"):
        learner = getattr(algo, part, learner)
    before = {k: v.clone() for k, v in learner.state_dict().items()}
    for _ in range(updates):
        metrics = algo.update(source.next(algo.act))
        assert metrics and all(bool(torch.isfinite(value)) for value in metrics.values())
    changed = [k for k, v in learner.state_dict().items() if not torch.equal(v, before[k])]
    assert changed
    size = source.env.obs_dim if corrects else sizes.obs_dim
    action = algo.deploy(torch.zeros(3, size), torch.Generator().manual_seed(0))
    assert action.shape == (3, 1 if corrects else config["horizon"], sizes.action_dim)
    assert bool((action.abs() <= 1).all())
    return config, algo, source


@pytest.mark.parametrize("name", TASKS)
def test_every_environment_file_is_a_registered_task_that_steps(name):
    skip_where_it_cannot_run(name)
    config = compose(["algo=sac", f"env={name}", "env.num_envs=2", "env.workers=0"])
    env = make_env(config)
    assert config["env"]["id"] in gymnasium.registry
    assert isinstance(env, ChunkEnv) and env.reset(0).shape == (2, env.obs_dim)
    step = env.step(torch.zeros(2, 1, env.action_dim))
    assert bool(step.valid.all()) and bool(step.obs.isfinite().all())
    env.close()


def test_any_gymnasium_task_is_named_by_its_id():
    config = compose(["algo=sac", "env=gym", "env.id=Pendulum-v1"])
    assert config["env"]["id"] == "Pendulum-v1"
    for group in ("gym", "ogbench"):
        with pytest.raises(RheoError, match="env.id: has to be set"):
            compose(["algo=sac", f"env={group}"])


@pytest.mark.parametrize("algo", ACTING)
def test_an_algorithm_learns_with_its_own_defaults(tiny, algo):
    """Shipped widths and counts; only the task, the warm-up and the epochs of a rollout are few."""
    data = [word for word in tiny(algo, "r") if word.startswith("data=")]
    task = [] if data else ["env=inverted_pendulum"]
    task += ["source.warmup=10"] if algo in WARMED else []
    kept = ("init=", "algo.learn.epochs=", "source.goal=", "source.achieved=", "source.tolerance=")
    task += [word for word in tiny(algo, "r") if word.startswith(kept)]
    learn([f"algo={algo}", *data, *task], updates=2 if data or algo in WARMED else 1)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("algo", ["bc", "rfm"])
@pytest.mark.parametrize("shape", ["single", "chunks"])
def test_every_network_learns_single_actions_and_chunks(tiny, algo, net, shape):
    words = without(tiny(algo, "r"), "policy.net.")
    words += [f"policy/net={net}", *(f"policy.net.{word}" for word in SMALL_NET[net])]
    words += CHUNKS if shape == "chunks" else []
    words += ["env=none"] if algo == "bc" else []
    _, algo_object, source = learn(words)
    if algo == "rfm" and shape == "chunks":
        batch = source.next(algo_object.act)
        assert batch.action.shape == (16, 4, 1) and batch.obs.shape == (16, 8)


@pytest.mark.parametrize("algo", [algo for algo in ACTING if not compares(algo)])
def test_every_algorithm_learns_chunks(tiny, algo):
    learn([*tiny(algo, "r"), *CHUNKS])


@pytest.mark.parametrize("path", ["linear", "cosine", "betas"])
@pytest.mark.parametrize("prediction", ["v", "eps", "a"])
def test_every_field_learns_by_matching(tiny, path, prediction):
    levels = ["policy.levels=10"] if path == "betas" else []
    words = [f"policy.path={path}", f"policy.prediction={prediction}", *levels]
    learn([*tiny("bc", "r"), *words])


@pytest.mark.parametrize("path", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["v", "eps", "a"])
def test_every_field_learns_by_reverse_matching(tiny, path, prediction):
    learn([*tiny("rfm", "r"), f"policy.path={path}", f"policy.prediction={prediction}"])


@pytest.mark.parametrize(
    "words",
    [
        ["policy.sampler=heun"],
        ["policy.clip_x=true", "policy.clip_a=true"],
        ["algo.estimator=combined"],
        ["algo.support=tanh", "policy.squash=tanh", "algo.estimator=gradient"],
        ["algo.proposal=truncated", "algo.temperature_rule=spread"],
        ["algo.act_candidates=3", "algo.deploy_candidates=2", "algo.target_candidates=2"],
        ["env.backend=gymnasium", "critic.layer_norm=true", "critic.members=3"],
        ["source.update_ratio=0.5", "env.num_envs=3"],
    ],
    ids=lambda words: words[0],
)
def test_options_of_reverse_matching_learn(tiny, words):
    learn([*tiny("rfm_box", "r"), *words])


def test_cloning_is_evaluated_in_an_environment_of_the_datas_sizes(tiny, episodes, tmp_path):
    words = tiny("bc", "r", "env=inverted_pendulum", "env.obs_steps=2", "steps=20")
    episodes(tmp_path / "data.npz", [9, 30], obs_dim=4, action_dim=1)
    assert main(["train", *words]) == 0
    lines = Path("runs/r/metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert "eval/return" in last and "val/loss" in last


def test_the_demo_recipe_is_a_whole_configuration():
    config = compose(["recipe=demo"])
    assert config["env"]["id"] == "InvertedPendulum-v5"
    assert config["steps"] >= config["source"]["warmup"]


def test_rollouts_are_a_source_of_their_own():
    config = compose(["algo=sac", "source=rollouts", "env=inverted_pendulum", "source.decisions=5"])
    source = assemble(config).source
    rollout = source.next(lambda obs: Choice(torch.zeros(len(obs), 1, 1), {}))
    assert rollout.reward.shape == (5, config["env"]["num_envs"])


def test_cloning_of_human_door_demonstrations_lowers_its_validation_loss(tiny):
    file = DATA / "adroit_door_human.npz"
    if not file.is_file():
        pytest.skip(f"no data at {file}; set RHEO_DATA to their folder")
    tiny("sac", "x")  # moves to an empty folder
    words = ["algo=bc", f"data={file}", "steps=300", "policy.net.width=64", "policy.net.depth=2"]
    periods = ["eval_every=300", "log_every=300", "save_every=300", "algo.ema_rate=0.05"]
    assert main(["train", *words, *periods, "horizon=4", "name=r"]) == 0
    lines = Path("runs/r/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["val/loss"] for line in lines if "val/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
