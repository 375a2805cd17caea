"""Learning rates reach their floor where a run ends, however it is driven."""

import numpy as np
import pytest

from rheo.algos.optim import cosine
from rheo.scripts.assemble import assemble
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.store.run import Run

LR, FLOOR = 1e-3, 0.1
SMALL = [
    *("policy.net.width=8", "policy.net.depth=1", "policy.steps=1", "critic.width=8"),
    *("critic.depth=1", "source.batch_size=8", f"algo.policy_lr={LR}", f"algo.lr_floor={FLOOR}"),
    *("env=inverted_pendulum", "env.num_envs=2"),
]
REPLAY = [f"{part}.obs_norm.kind=none" for part in ("policy", "critic")]


def words(algo, source, tmp_path, steps=60, warmup=20, ratio=1.0, n_step=1):
    """A small run that is driven online."""
    own = "source.replay" if source == "mixed" else "source"
    given = [f"algo={algo}", f"source={source}", *SMALL, f"steps={steps}", f"{own}.n_step={n_step}"]
    given += [f"{own}.warmup={warmup}", f"{own}.update_ratio={ratio}"]
    value = [] if algo in ("dac", "dql", "qsm") else ["algo.value.width=8", "algo.value.depth=1"]
    if source == "replay":
        value += ["algo.value.obs_norm.kind=none"] if value else []
        return [*given, *value, *REPLAY]
    given += value
    rng, count = np.random.default_rng(0), 40
    np.savez(
        tmp_path / "data.npz",
        observations=rng.normal(size=(count, 4)),
        actions=rng.uniform(-1, 1, (count, 1)),
        rewards=rng.normal(size=count),
        episode_ends=[20, count],
    )
    return [*given, f"data={tmp_path / 'data.npz'}"]


def rates(given):
    """The policy's learning rate of every update of a run, and what was announced as its number."""
    config = compose(given)
    algo, source, _, _ = assemble(config)
    seen = []
    while source.progress < config["steps"]:
        algo.update(source.next(algo.act))
        seen.append(algo.policy_opt.param_groups[0]["lr"])
    return seen, algo.run_updates


@pytest.mark.parametrize(
    ("algo", "source", "ratio"),
    [
        ("iql", "mixed", 0.25),
        ("awm", "replay", 1.0),
        ("dql", "replay", 2.0),
        ("awm", "mixed", 4.0),
        ("dac", "mixed", 1.0),
        ("qsm", "replay", 0.5),
    ],
)
def test_a_rate_falls_over_the_updates_that_a_run_online_makes(tmp_path, algo, source, ratio):
    seen, announced = rates(words(algo, source, tmp_path, ratio=ratio))
    assert len(seen) == announced
    shares = np.arange(1, len(seen) + 1) / len(seen)
    assert seen == pytest.approx([LR * cosine(share, 0.0, FLOOR) for share in shares])
    assert seen[-1] == pytest.approx(LR * FLOOR) and seen[-2] > 1.0001 * LR * FLOOR


@pytest.mark.parametrize(
    ("change", "updates"),
    [
        ({"warmup": 0}, 1 + 56),  # two environments: frame 2 begins, the last counted is 58
        ({"warmup": 0, "n_step": 4}, 1 + 50),  # nothing is stored before the fourth decision
        ({"warmup": 21}, 1 + 36),  # warmed up at frame 22
        ({"warmup": 70}, 1),
    ],
    ids=str,
)
def test_updates_are_counted_from_the_end_of_the_warm_up(tmp_path, change, updates):
    seen, announced = rates(words("iql", "replay", tmp_path, **change))
    assert len(seen) == announced == updates
    assert seen[-1] == pytest.approx(LR * FLOOR)


def test_chunks_leave_the_rate_at_its_floor_for_a_decision_at_most(tmp_path):
    chunks = ["horizon=2", "env.execute=2"]
    seen, announced = rates([*words("iql", "replay", tmp_path, ratio=2.0), *chunks])
    assert announced <= len(seen) <= announced + 8
    assert seen[-1] == pytest.approx(LR * FLOOR) and seen[-12] > 1.01 * LR * FLOOR


def saved_rate(name):
    tree = Run.open(name).load()
    assert tree is not None
    return tree["algo"]["policy_opt"]["param_groups"][0]["lr"]


def test_a_run_that_was_extended_and_one_on_data_end_at_the_floor_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["episodes=1", "eval_every=1000", "log_every=20", "save_every=1000"]
    given = [*words("iql", "mixed", tmp_path, ratio=2.0), *more]
    assert main(["train", *given, "name=online"]) == 0
    assert saved_rate("online") == pytest.approx(LR * FLOOR)
    assert main(["resume", "online", "steps=120"]) == 0  # on from where 40 of 100 frames put it
    assert saved_rate("online") == pytest.approx(LR * FLOOR)
    config = Run.open("online").config
    assert assemble(config).algo.run_updates == 2 * 98 + 1
    offline = [w for w in given if not w.startswith(("source", "env"))]
    assert main(["train", *offline, "source=transitions", "env=null", "name=data"]) == 0
    assert saved_rate("data") == pytest.approx(LR * FLOOR)
    assert assemble(Run.open("data").config).algo.run_updates == 60
