"""From a recording on disk to a score: what a person with a data set types, end to end."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from shipped import ACTING

from rheo.envs.mujoco.native import NativeVector
from rheo.scripts.cli import main
from rheo.scripts.config.compose import HOME
from rheo.scripts.store.journal import Journal

SOURCES = ("/source: transitions", "/source: plans")
OFFLINE = [
    name
    for name in ACTING
    if any(source in (HOME / "algo" / f"{name}.yaml").read_text() for source in SOURCES)
]
SMALL = {
    "flow": ["policy.net.width=16", "policy.net.depth=1", "policy.steps=2"],
    "gaussian": ["policy.width=16", "policy.depth=1"],
}
PERIODS = ["steps=30", "log_every=10", "eval_every=30", "save_every=30", "episodes=2"]


def write_d4rl(file: Path, steps: int = 400) -> None:
    """Random Hopper steps in the layout of D4RL's v2 files, written by hand."""
    import torch

    env, generator = NativeVector("Hopper-v4", 1, threads=1), np.random.default_rng(0)
    obs, rows = env.reset(0), []
    for step in range(steps):
        action = generator.uniform(-1, 1, (1, 3)).astype(np.float32)
        out = env.step(torch.from_numpy(action))
        ended, cut = bool(out.terminated), step == steps - 1
        rows.append((obs[0], action[0], out.reward[0], out.final_obs[0], ended, cut and not ended))
        obs = out.obs
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    with h5py.File(file, "w") as data:
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            kind = bool if name in ("terminals", "timeouts") else np.float32
            data[name] = np.asarray(np.stack([np.asarray(value) for value in column]), kind)
        data["costs"] = np.arange(steps) % 7 == 0  # as DSRL's files have them
        data["infos/action_log_probs"] = np.zeros(steps, np.float32)
        data["infos/qpos"], data["infos/qvel"] = np.zeros((steps, 6)), np.zeros((steps, 6))
        data["metadata/algorithm"] = np.bytes_("SAC")
        data["metadata/policy/fc0/weight"] = np.zeros((256, 11), np.float32)


@pytest.fixture
def d4rl(tmp_path, monkeypatch):
    """A folder of D4RL files with one data set; the test works in another one."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    write_d4rl(folder / "hopper_random-v2.hdf5")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def words(algo: str) -> list[str]:
    text = (HOME / "algo" / f"{algo}.yaml").read_text()
    kinds = (
        "/policy: flow",
        "/policy: fewstep",
        "/policy: guided",
        "/policy: plan",
        "/policy/net:",
    )
    flow = any(word in text for word in kinds)
    net = SMALL["flow"] if flow else SMALL["gaussian"]
    net = [word.replace("steps=2", "steps=1") for word in net] if "fewstep" in text else net
    value = ["algo.value.width=16"] if "value:" in text else []
    critic = ["critic.width=16", "critic.depth=1"] if "/critic: none" not in text else []
    base = ["init=scratch"] if "\ninit:" in text else []
    base += ["source.pair_batches=15"] if "pair_batches" in text else []
    return [f"algo={algo}", *base, *net, *value, *critic, *PERIODS, "source.batch_size=16"]


@pytest.mark.parametrize("algo", ["bc", *OFFLINE])
def test_a_d4rl_file_laid_in_the_users_folder_trains_and_is_scored(d4rl, capsys, algo):
    assert main(["train", *words(algo), "data=hopper-random-v2", "name=runs/one"]) == 0
    capsys.readouterr()
    assert main(["eval", "one", "episodes=3"]) == 0
    printed = capsys.readouterr().out
    assert "Hopper-v4" in printed and "return" in printed and "score" in printed
    rows = [json.loads(line) for line in Path("runs/one/metrics.jsonl").read_text().splitlines()]
    assert any("eval/score" in row for row in rows)


@pytest.mark.parametrize("algo", OFFLINE)
def test_stop_and_resume_on_recorded_data_equals_the_straight_run(d4rl, algo):
    # a schedule over the run's length would be another one in the shorter first part
    text = (HOME / "algo" / f"{algo}.yaml").read_text()
    constant = ["algo.lr_floor=1.0"] if "lr_floor" in text else []
    common = [*words(algo), *constant, "data=hopper-random-v2", "env=null", "save_every=10"]
    assert main(["train", *common, "steps=20", "name=runs/straight"]) == 0
    assert main(["train", *common, "steps=10", "name=runs/parts"]) == 0
    assert main(["resume", "parts", "steps=20"]) == 0
    logs = []
    for name in ("straight", "parts"):
        last = Journal(Path(f"runs/{name}/metrics.jsonl")).rows()[-1]
        logs.append({key: value for key, value in last.items() if not key.startswith("time/")})
    assert logs[0] == logs[1]


def test_a_policy_learned_offline_goes_on_online_with_a_share_of_the_data(d4rl):
    assert main(["train", *words("iql"), "data=hopper-random-v2", "name=runs/off"]) == 0
    online = [
        *words("iql"),
        *("source=mixed", "source.replay.warmup=20", "source.offline_share=0.25"),
        *("data=hopper-random-v2", "init=off", "name=runs/on"),
    ]
    online.remove("source.batch_size=16")
    assert main(["train", *online, "source.batch_size=16"]) == 0
    rows = [json.loads(line) for line in Path("runs/on/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] >= 30


def test_statistics_without_data_are_refused_with_the_keys_to_set(d4rl, capsys):
    online = [w for w in words("iql") if not w.startswith("source")]
    online += ["source=replay", "env=inverted_pendulum", "name=runs/on"]
    none = ["policy.obs_norm.kind=none", "critic.obs_norm.kind=none"]
    assert main(["train", *online]) == 2
    assert "policy.obs_norm.kind=none" in capsys.readouterr().err
    assert main(["train", *online, *none]) == 2
    assert "algo.value.obs_norm.kind=none" in capsys.readouterr().err
    assert not Path("runs/on").exists()
    small = [*none, "algo.value.obs_norm.kind=none", "source.warmup=20", "source.batch_size=8"]
    assert main(["train", *online, *small]) == 0
