"""`rheo export`: the program does what the run does, without Rheo."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rheo
from rheo.policies.exported import Exported
from rheo.policies.programs import opened
from rheo.scripts.cli import main
from rheo.scripts.policy import Policy
from rheo.scripts.program import Given, Program, joined, layer_norm

# one for each way to decide: one pass, a flow, its mean, jumps, noise in every step, candidates and
# their edits, a head, ascent on a critic, a steered base
DECIDING = ["bc_gaussian", "td3", "bc", "fpo_pp", "shortcut", "dppo", "qsm", "rfm", "expo"]
DECIDING += ["fql", "awm_q_tune", "dsrl_na", "rfs", "parl", "plan"]
# of parl, whose actions climb otherwise; few steps, as a program has each of them written out
OWN = {
    "parl": ["algo.proposals=svdd", "algo.rounds=0", "policy.steps=3"],
    "dppo": ["policy.steps=4", "algo.tuned_steps=2"],
    "qsm": ["policy.steps=4", "policy.levels=4"],
}
CHUNKS = ("horizon=2", "env.obs_steps=2")


def trained(tiny: Any, algo: str, *more: str) -> str:
    """A run of a second in InvertedPendulum, whose actions reach 3, or from data of two numbers."""
    words = tiny(algo, "a", "steps=60", "log_every=60", "eval_every=60", "episodes=1", *more)
    assert main(["train", *words]) == 0
    return "a"


@pytest.mark.parametrize("algo", DECIDING)
def test_every_way_of_deciding_becomes_a_program_of_any_number_of_rows(
    tiny: Any, algo: str
) -> None:
    run = trained(tiny, algo, "horizon=2", *OWN.get(algo, []))
    assert main(["export", run, "out=a.pt2"]) == 0  # which compares a thousand inputs
    told = json.loads(Path("a.pt2.json").read_text())
    assert told["checked"]["difference"] <= 1e-6 and told["checked"]["ties"] <= 10
    program = opened(Path("a.pt2").read_bytes(), ".pt2")  # what is looked into passes
    given = [torch.rand(5, *one["shape"][1:]) for one in told["inputs"]]
    many = program(*given)
    assert list(many.shape) == [5, *told["output"]["shape"][1:]]
    one = program(*(each[2:3] for each in given))
    torch.testing.assert_close(one, many[2:3], rtol=1e-5, atol=1e-5)


def test_the_program_runs_where_rheo_is_not(tiny: Any, tmp_path: Path) -> None:
    run = trained(tiny, "rfm", "env=inverted_pendulum", *CHUNKS)
    assert main(["export", run]) == 0
    code = """
import json, sys, torch
sys.modules["rheo"] = None
told = json.load(open("a.pt2.json"))
given = [torch.zeros(1, *one["shape"][1:]) for one in told["inputs"]]
print(torch.export.load(told["program"]).module()(*given).flatten().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    policy, told = Policy(run), json.loads(Path("a.pt2.json").read_text())
    zeros = torch.zeros(1, told["inputs"][1]["shape"][1])
    wanted = policy.algo.deploy(torch.zeros(1, 8), Given(normal=zeros))
    np.testing.assert_allclose(json.loads(done.stdout), 3 * wanted.flatten().numpy(), atol=1e-5)
    assert told["observation"] == {"parts": {"flat": 4}, "images": {}, "steps": 2}
    assert told["output"]["low"] == [-3] and told["plan"] == {
        "steps": 2,
        "executed": 2,
        "learned": 2,
    }
    assert told["rate_hz"] == 25 and told["environment"] == "InvertedPendulum-v5"


@pytest.mark.parametrize(
    ("algo", "words"),
    [("parl", []), ("awm_q", ["env=inverted_pendulum", "algo.steer.words=[climb,best]"])],
)
def test_actions_that_climb_a_critic_are_said_to_fit_in_no_program(
    tiny: Any, capsys: Any, algo: str, words: list[str]
) -> None:
    run = trained(tiny, algo, *words)
    assert main(["export", run, "out=a.pt2"]) == 2
    assert "run climb its critic" in capsys.readouterr().err
    assert not Path("a.pt2").exists()


def test_a_flow_s_program_is_a_policy_to_steer(tiny: Any, capsys: Any) -> None:
    run = trained(tiny, "bc", "horizon=1")
    assert main(["export", run, "out=unit.pt2", "units=unit"]) == 0
    told = json.loads(Path("unit.pt2.json").read_text())
    assert told["output"]["low"] == [-1, -1] and told["inputs"][1]["shape"] == ["batch", 1, 2]
    exported = Exported(3, 2, 1, path="unit.pt2")
    obs, noise = torch.randn(3, 3), torch.randn(3, 1, 2)
    wanted = Policy(run).algo.deploy(obs, Given(normal=noise.flatten(1)))
    torch.testing.assert_close(exported.act(obs, noise), wanted, rtol=0, atol=1e-6)


def test_a_program_that_differs_is_not_passed_off(tiny: Any, capsys: Any, monkeypatch: Any) -> None:
    run = trained(tiny, "td3", "env=inverted_pendulum")
    forward = Program.forward
    monkeypatch.setattr(Program, "forward", lambda self, *given: forward(self, *given) + 1e-3)
    assert main(["export", run]) == 2
    assert "of 1000 inputs, which is no rounding" in capsys.readouterr().err
    assert not Path("a.pt2").exists() and not Path("a.pt2.json").exists()


def test_spelled_out_operations_are_torch_s_own() -> None:
    x, weight, bias = torch.randn(2, 3, 5), torch.randn(5), torch.randn(5)
    own = torch.nn.functional.layer_norm(x, (5,), weight, bias)
    torch.testing.assert_close(layer_norm(x, (5,), weight, bias), own)
    parts = [torch.randn(2, n, 5) for n in (1, 3, 2)]
    assert torch.equal(joined(parts, 1), torch.cat(parts, 1))
    assert torch.equal(joined([x, x], -1), torch.cat([x, x], -1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "out=a.bin"], "out=a.bin: a program is a .pt2 or .onnx"),
        (["a", "out=there.pt2"], "out=there.pt2: exists; choose another name"),
        (["a", "units=cm"], "units=cm: not known"),
        (["nothing"], "no run at"),
        ([], "usage: rheo export"),
    ],
)
def test_what_cannot_be_exported_is_answered(
    tiny: Any, capsys: Any, words: list[str], message: str
) -> None:
    trained(tiny, "td3", "env=inverted_pendulum")
    Path("there.pt2").touch()
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_of_two_programs_and_lacking_packages_are_named(
    tiny: Any, capsys: Any, monkeypatch: Any
) -> None:
    assert (
        main(["train", *tiny("resip", "r", "env=inverted_pendulum", "horizon=2", "steps=60")]) == 0
    )
    assert main(["export", "r"]) == 2
    assert "one that corrects each of their actions" in capsys.readouterr().err
    trained(tiny, "td3", "env=inverted_pendulum")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["export", "a", "out=a.onnx"]) == 2
    assert "an .onnx needs onnx, onnxscript, onnxruntime: pip install" in capsys.readouterr().err


def test_onnx_does_the_same(tiny: Any) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    run = trained(tiny, "rfm", "env=inverted_pendulum", *CHUNKS)
    assert main(["export", run, "out=a.onnx"]) == 0
    assert json.loads(Path("a.onnx.json").read_text())["checked"]["difference"] <= 1e-6
    assert rheo.load(run).act(np.zeros(4)).shape == (1,)
