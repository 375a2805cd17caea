"""Groups that were composed before: a tree of one's own, of the files as they are now."""

import shutil
from pathlib import Path

import pytest

from rheo.errors import RheoError
from rheo.scripts.config import groups
from rheo.scripts.config.compose import compose
from rheo.scripts.config.groups import compose_groups

WORDS = ["algo=sac", "env=inverted_pendulum"]


def test_a_tree_that_was_changed_is_not_met_again() -> None:
    first = compose_groups(WORDS, [], [])
    kept = first["algo"].copy()
    first["algo"]["policy_lr"] = first["env"]["options"] = "mine"
    second = compose_groups(WORDS, [], [])
    assert second["algo"] == kept and second["env"]["options"] != "mine"
    one, two = compose([*WORDS, "algo.policy_lr=0.5"]), compose(WORDS)
    assert one["algo"]["policy_lr"] == 0.5 and two["algo"]["policy_lr"] == kept["policy_lr"]


def test_a_file_that_changes_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "configs"
    shutil.copytree(groups.HOME, home)
    monkeypatch.setattr(groups, "HOME", home)
    assert compose_groups(WORDS, [], [])["algo"]["policy_lr"] == 3e-4
    file = home / "algo" / "sac.yaml"
    file.write_text(file.read_text().replace("policy_lr: 3.0e-4", "policy_lr: 0.00025"))
    assert compose_groups(WORDS, [], [])["algo"]["policy_lr"] == 2.5e-4
    monkeypatch.undo()
    assert compose_groups(WORDS, [], [])["algo"]["policy_lr"] == 3e-4


def test_what_cannot_be_composed_is_told_each_time() -> None:
    for _ in range(2):
        with pytest.raises(RheoError, match="2 errors[^$]*before[^$]*nothing"):
            compose_groups(["algo=nothing"], [], ["before"])
