"""`rheo suite`: tasks and protocol of the field's suites, as sweeps."""

import csv
from pathlib import Path

import pytest
from ogbench_files import record

from rheo.envs.data.catalogue import known
from rheo.scripts.cli import main
from rheo.scripts.config.suites import default_name, expanded, suites
from rheo.scripts.config.top import HOME

ENVS = {file.stem for file in (HOME / "env").glob("*.yaml")}


def test_every_task_of_every_suite_is_there() -> None:
    for name, one in suites().items():
        ((key, values),) = one["tasks"].items()
        assert one["about"] and len(set(values)) == len(values) > 1, name
        if key == "env":
            assert set(values) <= ENVS
        elif key == "data":
            assert all(map(known, values))
        else:
            assert key == "env.id" and all(value.startswith("metaworld/") for value in values)


def test_what_is_typed_stands_above_a_suite() -> None:
    one = suites()["locomotion-v5-short"]
    words = expanded(one, {"steps", "env"})
    assert "episodes=50" in words and not any(word.startswith(("steps=", "env=")) for word in words)
    assert "env=halfcheetah,hopper,walker2d,ant" in expanded(one, set())
    assert default_name("dmc", ["seed=0", "algo=sac,rfm"]) == "dmc-sac-rfm"


def test_a_suite_is_trained_cut_short_gone_on_with_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["critic.width=16", "policy.width=16", "source.warmup=20", "source.batch_size=8"]
    words = ["suite", "locomotion-v5-short", "algo=sac", "env=inverted_pendulum,swimmer", *small]
    words += ["seed=0,1", "steps=60", "episodes=1", "log_every=20", "name=s"]
    assert main([*words, "algo.polici_lr=1"]) == 2  # before any work
    assert main(words) == 0
    assert "rheo report runs/s" in capsys.readouterr().out
    with Path("runs/s.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert main(words) == 0  # nothing is left to do
    assert main(["report", "runs/s"]) == 0
    text = Path("runs/s/report.md").read_text()
    assert "## InvertedPendulum-v5: return" in text and "## Swimmer-v5: return" in text
    assert "| 2 |" in text  # seeds of a row


def test_a_suite_of_data_is_trained_and_played_in_the_world_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ogbench")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RHEO_DATASETS", str(tmp_path))
    names = [f"pointmaze-{size}-navigate-singletask-v0" for size in ("medium", "large")]
    for name in names:
        world = name.partition("-navigate")[0]
        record(tmp_path / f"{world}-navigate-v0.npz", world)
    words = ["suite", "antmaze", "algo=rfm_offline", f"data={','.join(names)}", "name=s"]
    words += ["steps=4", "eval_every=4", "log_every=2", "episodes=1", "source.batch_size=8"]
    words += ["algo.policy_batch=8", "env.options.max_episode_steps=20"]
    assert main(words) == 0
    assert main(["report", "runs/s"]) == 0
    text = Path("runs/s/report.md").read_text()
    assert all(f"## {name} max_episode_steps=20: success_once" in text for name in names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["locomotion", "algo=sac"], "there is none; did you mean 'locomotion-v5'"),
        (["dmc"], "suite dmc: algo=NAME says what is trained"),
    ],
)
def test_a_suite_that_cannot_be_run_is_answered(capsys, words: list[str], message: str) -> None:
    assert main(["suite", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_suites_are_listed(capsys) -> None:
    assert main(["suite"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in suites())
