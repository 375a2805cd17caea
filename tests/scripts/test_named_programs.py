"""Code that a run folder calls runs when its user has named it, and only as it was."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import rheo
from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.config import programs, schema
from rheo.scripts.config.compose import compose, load
from rheo.scripts.store.run import Run

SMALL = ["env=inverted_pendulum", "critic.obs_norm.kind=none", "algo.actor.obs_norm.kind=none"]
SMALL += ["algo.noise_critic.obs_norm.kind=none", "algo=dsrl_na"]


@pytest.fixture(autouse=True)
def nothing_named(tmp_path, monkeypatch):
    """Each test begins as a new process does, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(programs, "named", set())
    monkeypatch.setattr(schema, "allowed", [])
    schema.parse.cache_clear()
    schema.definition.cache_clear()


def received(words: list[str], name: str = "got") -> Path:
    """A run folder as somebody else's command left it, whose programs nobody here has named."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    config = compose([*words, f"name={name}"])
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    programs.named.clear()
    schema.allowed.clear()
    return folder


def program(name: str = "base.pt2", content: bytes = b"a program") -> tuple[str, str]:
    """A file that stands for a program, which nothing may read here, and its digest."""
    Path(name).write_bytes(content)
    return str(Path(name).absolute()), hashlib.sha256(content).hexdigest()


def steered(path: str) -> list[str]:
    return [*SMALL, "policy=exported", f"policy.path={path}"]


def test_the_configuration_keeps_the_digest_of_what_was_typed():
    path, digest = program()
    config = compose(steered("base.pt2"))
    assert (config["policy"]["path"], config["policy"]["sha256"]) == (path, digest)
    assert programs.named == {digest}


VERBS = [
    ["eval", "got"], ["resume", "got"], ["collect", "got", "out=a.npz"], ["play", "got"],
    ["export", "got"], ["serve", "got", "port=0"],
    ["train", "algo=dsrl_na", "init=got", "env=inverted_pendulum"],
    ["train", *SMALL, "policy=exported", "init=got"],
]  # fmt: skip


@pytest.mark.parametrize("words", VERBS, ids=lambda words: "-".join(words[:3]))
def test_every_verb_refuses_a_run_that_calls_a_program_until_it_is_named(words, capsys):
    path, digest = program()
    folder = received(steered(path))
    (folder / "ckpt" / "000000000001").mkdir(parents=True)
    (folder / "ckpt" / "000000000001" / "manifest.json").write_text("{}")
    assert main(words) == 2
    told = capsys.readouterr().err
    line = f"calls the program {path} (sha256 {digest}); if you trust it add --program {path}"
    assert line in told and "Traceback" not in told
    for name in (path, digest):
        programs.named.clear()
        assert main([*words, "--program", name]) != 0  # nothing here is a checkpoint
        assert "calls the program" not in capsys.readouterr().err


def test_python_names_a_program_as_the_command_line_does():
    path, digest = program()
    received(steered(path))
    with pytest.raises(RheoError, match="calls the program"):
        rheo.load("got")
    with pytest.raises(RheoError, match="--program other.pt2: no such file"):
        rheo.load("got", program="other.pt2")
    for name in (path, digest, Path(path), [path]):
        programs.named.clear()
        with pytest.raises(RheoError, match="has no checkpoint yet|cannot be read"):
            rheo.load("got", program=name)


def test_a_program_that_was_changed_is_named_even_where_it_is_typed():
    path, digest = program()
    folder = received(steered(path))
    _, other = program(content=b"another")
    told = rf"policy.path={path}: another program than the run's \(sha256 {other}, .*is {digest}\)"
    for words in ([], [f"policy.path={path}"], ["--program", digest]):
        with pytest.raises(RheoError, match=told):
            load(folder, words)
    assert load(folder, ["--program", path])["policy"]["sha256"] == other


def test_a_moved_program_is_named_by_its_path():
    path, digest = program()
    folder = received(steered(path))
    Path(path).rename("moved.pt2")
    config = load(folder, ["policy.path=moved.pt2"])
    assert config["policy"]["sha256"] == digest and config["policy"]["path"].endswith("moved.pt2")


def test_onnx_is_no_code_and_is_compared_all_the_same():
    path, digest = program("base.onnx")
    folder = received(steered(path))
    assert load(folder)["policy"]["sha256"] == digest
    program("base.onnx", b"another")
    with pytest.raises(RheoError, match="another program than the run's"):
        load(folder)


def test_a_program_is_found_wherever_a_folder_hides_it():
    path, _ = program()
    folder = received(["algo=sac", "env=inverted_pendulum"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    hidden = {"_target_": programs.EXPORTED, "path": path, "sha256": None}
    config["critic"]["obs_norm"] = hidden
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RheoError, match="calls the program"):
        load(folder)


def test_the_command_that_goes_on_names_the_program():
    path, _ = program()
    folder = received(steered(path))
    run = Run(folder, load(folder, ["--program", path]), None)
    assert f"--program {path}" in run.resume_command()


def test_what_names_nothing_is_answered(capsys):
    assert main(["eval", "got", "--program", "none.pt2"]) == 2
    assert "--program none.pt2: no such file, and no SHA-256" in capsys.readouterr().err
    assert main(["train", "algo=sac", "env=hopper", "--progam", "x"]) == 2
    assert "did you mean '--program'?" in capsys.readouterr().err
    assert main(["train", "algo=sac", "env=hopper", "programs={a.py: b}"]) == 2
    assert "name the file with --program" in capsys.readouterr().err


# ---- classes of --config-dir -----------------------------------------------------------------

THEIRS = """\
from hands import push
from torch import nn


class Theirs(nn.Module):
    def __init__(self, action_dim: int, horizon: int, *, gain: float):
        super().__init__()

    def act(self, obs, noise):
        return push(noise)
"""


def folder_of_classes() -> list[str]:
    mine = Path("mine")
    (mine / "policy").mkdir(parents=True)
    (mine / "my_hand.py").write_text(THEIRS)
    (mine / "hands.py").write_text("def push(noise):\n    return noise\n")
    (mine / "unused.py").write_text("")
    (mine / "policy" / "my_hand.yaml").write_text("_target_: my_hand.Theirs\ngain: 4.0\n")
    return [*SMALL, "--config-dir", "mine", "policy=my_hand"]


def test_classes_of_a_run_are_those_that_it_was_made_with():
    folder = received(folder_of_classes())
    kept = yaml.safe_load((folder / "config.yaml").read_text())["programs"]
    assert sorted(kept) == ["hands.py", "my_hand.py"]
    with pytest.raises(RheoError, match="add --config-dir"):
        load(folder)
    Path("mine/unused.py").write_text("x = 1\n")
    assert load(folder, ["--config-dir", "mine"])["programs"] == kept
    Path("mine/hands.py").write_text("def push(noise):\n    return -noise\n")
    with pytest.raises(RheoError, match=r"hands.py of --config-dir is not what the run was made"):
        load(folder, ["--config-dir", "mine"])
    named: Any = load(folder, ["--config-dir", "mine", "--program", "mine/hands.py"])["programs"]
    assert named["my_hand.py"] == kept["my_hand.py"] and named["hands.py"] != kept["hands.py"]


def test_a_run_of_before_says_nothing_of_its_classes():
    folder = received(folder_of_classes())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["programs"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert sorted(load(folder, ["--config-dir", "mine"])["programs"]) == ["hands.py", "my_hand.py"]
