"""A hash of what every algorithm has become after a few updates, to see that a change of structure
changed no number: `python tests/golden.py > before`, the change, `python tests/golden.py > after`,
`diff before after`.

A line holds the run, a hash of its metrics and one of its tensors. Names of tensors are left out,
so they may move; hashes are of one machine, as rounding is.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from conftest import write_episodes
from shipped import ALGOS, needs, small

from rheo.scripts.cli import main
from rheo.scripts.store.journal import Journal
from rheo.scripts.store.run import Run
from rheo.scripts.store.state import tensors

VARIANTS = {  # beside every algorithm as its tests have it
    "bc, betas": ("bc", "policy.path=betas policy.betas=vp policy.levels=5 policy.prediction=eps"),
    "bc, cosine": ("bc", "policy.path=cosine policy.prediction=eps policy.clip_a=true"),
    "bc, transformer": ("bc", "policy/net=transformer horizon=4"),
    "dql, few steps": ("dql", "policy=flow policy.steps=1"),
    "ofql, bootstrap": ("ofql", "algo.jump=bootstrap"),
    "reinflow, tuned": ("reinflow", "init=base"),
    "awm_gae, tuned": ("awm_gae", "init=base"),
    "dppo, tuned": ("dppo", "init=cosine"),
    "dsrl_na, steered": ("dsrl_na", "init=base horizon=1"),
    "expo, edited": ("expo", "init=base"),
    "resip, residual": ("resip", "init=base"),
    "awm_q, tuned": ("awm_q_tune", "init=base"),
}
PERIODS = ["steps=120", "log_every=10", "eval_every=60", "save_every=120", "episodes=2"]


def words(algo: str, more: list[str]) -> list[str]:
    """The command of a small run."""
    given = any(word.startswith("init=") for word in more)
    base = [word for word in needs(algo, "data.npz") if not (given and word == "init=scratch")]
    return ["train", *base, *small(algo), *PERIODS, *more]


def digest(name: str) -> str:
    """Hashes of a run's metrics, clocks left out, and of its tensors, whatever they are called."""
    found = Journal(Path("runs", name, "metrics.jsonl")).rows()
    rows = [{k: v for k, v in row.items() if k[:5] != "time/"} for row in found]
    told = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
    saved = Run.open(name).load()
    assert saved is not None
    parts = {
        hashlib.sha256(f"{t.dtype}{list(t.shape)}".encode() + raw(t)).hexdigest()
        for _, t in tensors(saved["algo"], "")
    }
    return f"{told} {hashlib.sha256(''.join(sorted(parts)).encode()).hexdigest()[:12]} {len(parts)}"


def raw(tensor: torch.Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def run(label: str, name: str, argv: list[str]) -> None:
    """Trains and prints one line."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = main([*argv, f"name={name}"])
    print(f"{label:20} {digest(name) if code == 0 else told.getvalue()[-300:]}", flush=True)


def all_runs(pattern: str) -> None:
    """Every run whose label holds the pattern, and the bases that some start from."""
    write_episodes(Path("data.npz"), [9, 30, 25, 40], obs_dim=4, action_dim=1)
    run("base", "base", words("bc", []))
    run("base, cosine", "cosine", words("bc", VARIANTS["bc, cosine"][1].split()))
    plain = {algo: (algo, "") for algo in ALGOS}
    for number, (label, (algo, more)) in enumerate({**plain, **VARIANTS}.items()):
        if pattern in label:
            run(label, f"run{number}", words(algo, more.split()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        all_runs(sys.argv[1] if len(sys.argv) > 1 else "")
