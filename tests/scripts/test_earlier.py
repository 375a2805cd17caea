"""Runs that an earlier version made: read, evaluated and resumed today."""

import json
import shutil
from pathlib import Path

import pytest

from rheo.scripts.cli import main
from rheo.scripts.config.compose import load
from rheo.scripts.config.schema import from_source
from rheo.scripts.store.versions import ADDED, MOVED, complete
from rheo.scripts.store.where import stored

EARLIER = Path(__file__).parent / "earlier"
RUNS = sorted(folder.name for folder in EARLIER.iterdir())


@pytest.fixture(params=RUNS)
def run(request, tmp_path, monkeypatch) -> Path:
    """A copy of a run folder that an earlier version left behind."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EARLIER / request.param, tmp_path / "runs" / request.param)
    return Path("runs", request.param)


def test_its_settings_read_as_todays(run):
    assert load(run)["algo"]["_target_"] == stored(run)["algo"]["_target_"]


def test_it_evaluates_as_it_did(run):
    """Its episodes, which are short: another action would end some of them elsewhere."""
    last = max((run / "eval").iterdir())
    assert main(["eval", str(run), "episodes=2"]) == 0
    files = (last, last.with_stem(f"{last.stem}-2"))
    before, now = (json.loads(file.read_text())["episodes"] for file in files)
    assert [(e["seed"], e["ret"]) for e in now] == [(e["seed"], e["ret"]) for e in before]


def test_it_resumes_to_what_that_version_resumed_to(run):
    """Metrics of the updates that follow, as the earlier version wrote them (resumed.json)."""
    assert main(["resume", str(run), "steps=120"]) == 0
    then = json.loads((run / "resumed.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["step"] > then[0]["step"] - 1]
    assert [row["step"] for row in rows] == [row["step"] for row in then]
    for row, before in zip(rows, then, strict=True):
        assert before.keys() <= row.keys()
        learned = {key for key in before if key[:7] in ("critic/", "policy/")}
        assert {key: row[key] for key in learned} == pytest.approx(
            {key: before[key] for key in learned}, rel=2e-2, abs=2e-2
        )


@pytest.mark.parametrize("before", MOVED)
def test_a_class_that_moved_is_found_by_its_old_name(before):
    node = {"algo": {"policy": {"_target_": before}}}
    complete(node)
    target = node["algo"]["policy"]["_target_"]
    assert target.split(".")[-1] == before.split(".")[-1] and from_source(target).keys


@pytest.mark.parametrize("target", ADDED)
def test_keys_that_older_runs_lack_are_keys_of_today(target):
    node = {"_target_": target}
    complete(node)
    assert node.keys() - {"_target_"} == ADDED[target].keys() <= set(from_source(target).keys)
