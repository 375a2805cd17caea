"""What `fast=graph` asks of an algorithm, on the CPU: its updates, recorded and replayed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shipped import ALGOS
from tape import TapeRecorder
from torch.utils._pytree import tree_map_only

from rheo.algos.optim import recordable, set_rate
from rheo.errors import RheoError
from rheo.scripts.assemble import Experiment, assemble
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.graph import WARM, Recorded, due, recorded
from rheo.scripts.store.state import capture, optimizers, tensors

MOST = 14  # updates, of which some parts come in every second
TURNS = {"rl100": 30}  # of which parts come in turns: more
ON_POLICY = ("awm_gae", "dppo", "fpo", "fpo_pp", "ppo", "reinflow", "resip", "rlcm")
PATH = "algo.pulls=[{kind:path,rule:dual,coef:1,threshold:0.1,rate:0.1}]"
GATED = "algo.pulls=[{kind:velocity,rule:gated,coef:1,share:0.1,every:3}]"
MORE = {  # parts that are off in what ships
    "rfm, ridge": ("rfm", "algo.estimator=combined"),
    "rfm, annealed": ("rfm", "algo.proposal=annealed"),
    "rfm, candidates": ("rfm", "algo.act_candidates=2 algo.choice_temperature=0.5"),
    "sac, rarely": ("sac", "algo.policy_every=3"),
    "reinflow, anchored": ("reinflow", "algo.anchor_coef=0.1"),
    "reinflow, path": ("reinflow", PATH),
    "dppo, path": ("dppo", "algo.pulls=[{kind:path,coef:1,limit:1e-9}]"),
    "awm_gae, scaled": ("awm_gae", "algo.pulls=[{kind:velocity,rule:scaled,coef:1}]"),
    "awm_q, gated": ("awm_q", GATED),
    "branch, path": ("branch", f"algo.antithetic=true algo.relative=true {PATH}"),
    "crd, gated": ("crd", f"algo.anchor_coef=0 algo.anchor_scaled=false {GATED}"),
}
CASES = {**{algo: (algo, "") for algo in ALGOS}, **MORE}


def made(words: list[str]) -> Experiment:
    return assemble(compose(words))


def laid_alike(side: Experiment) -> Any:
    """The next batch in memory of its own: a product's last bit depends on how its factors lie."""
    batch = side.source.next(side.algo.act)
    return tree_map_only(torch.Tensor, lambda value: value.contiguous().clone(), batch)


@pytest.mark.parametrize("case", CASES)
def test_updates_that_are_replayed_are_those_that_are_run(
    tiny: Callable[..., list[str]], case: str
) -> None:
    """To the last bit: in every number that is told and in all that is learned."""
    algo, more = CASES[case]
    updates = 4 if algo in ON_POLICY else TURNS.get(algo, MOST)
    assert_replayed(tiny(algo, "r", *more.split()), updates)


@pytest.mark.parametrize("algo", ["crd", "dpo", "d3po"])
@pytest.mark.parametrize("labels", [False, True])
def test_updates_on_pairs_are_replayed_too(tmp_path: Path, algo: str, labels: bool) -> None:
    draws, file = np.random.default_rng(0), tmp_path / "pairs.npz"
    obs, chunks = draws.normal(size=(30, 4)), draws.uniform(-1, 1, (30, 3, 1, 1))
    judged: dict[str, Any] = {"chosen": chunks[:, 0], "rejected": chunks[:, 1]}
    tried: dict[str, Any] = {"chunks": chunks, "returns": draws.normal(size=(30, 3))}
    np.savez(file, observations=obs, **(judged if labels else tried))
    small = ["policy.net.width=16", "policy.net.depth=1", "policy.steps=2"]
    assert_replayed([f"algo={algo}", f"data={file}", "init=scratch", *small], MOST)


def assert_replayed(words: list[str], updates: int) -> None:
    """So many updates of a command, recorded and replayed, are those that are run."""
    recorder = TapeRecorder()
    run, replayed = made(words), made(words)
    for _, optimizer in optimizers(run.algo):
        recordable(optimizer)
    replayed.algo.learn_from = Recorded(replayed.algo, recorder)
    for count in range(updates):
        told = [side.algo.update(laid_alike(side)) for side in (run, replayed)]
        assert told[0].keys() == told[1].keys(), count
        assert all(torch.equal(told[0][name], told[1][name]) for name in told[0]), count
    assert recorder.played >= 2
    assert not any(tape.from_host for tape in recorder.tapes)
    states = [list(tensors(capture(side.algo), "")) for side in (run, replayed)]
    for (name, one), (same, two) in zip(*states, strict=True):
        assert name == same and torch.equal(one, two), name


class Small:
    """An algorithm of one number, whose work can be made unfit for a recording."""

    def __init__(self, fault: str = "", device: str = "cpu") -> None:
        self.fault, self.updates, self.slow_every = fault, 0, 2
        self.generator = torch.Generator(device).manual_seed(0)
        self.at = torch.nn.Parameter(torch.ones((), device=device))
        self.opt = torch.optim.AdamW([self.at], lr=0.1, fused=True)

    def update(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        self.updates += 1
        set_rate(self.opt, 0.1 / self.updates)
        return self.learn_from(batch)

    def learn_from(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.fault == "read" and batch.sum().item() > 1e9:
            return {}
        factor = 1.0 / self.updates if self.fault == "count" else 1.0
        noise = torch.randn(len(batch), generator=self.generator, device=batch.device)
        loss = (self.at * batch + noise).square().mean() * factor
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        self.opt.step()
        if self.updates % self.slow_every == 0:
            with torch.no_grad():
                self.at.mul_(0.9)
        return {"loss": loss.detach()}


def course(
    fault: str = "", recorder: TapeRecorder | None = None, device: str = "cpu", graph: bool = False
) -> list[float]:
    """Losses of updates on random batches; every fourth has a row less."""
    algo: Any = Small(fault, device)
    recordable(algo.opt)
    if graph:
        algo.learn_from = recorded(algo)
    elif recorder is not None:
        algo.learn_from = Recorded(algo, recorder)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(4 - (k % 4 == 3), generator=generator).to(device) for k in range(30)]
    return [algo.update(batch)["loss"].item() for batch in batches]


def test_rates_noise_shapes_and_what_is_due_are_those_of_the_update() -> None:
    recorder = TapeRecorder()
    assert course(recorder=recorder) == course()
    assert len(recorder.tapes) == 3  # short batches come in even updates alone
    assert recorder.played == 30 - 3 * (WARM + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
def test_replays_of_a_cuda_graph_are_the_updates() -> None:
    assert course(device="cuda", graph=True) == pytest.approx(course(device="cuda"), rel=1e-4)


def test_what_the_host_counts_within_the_work_would_stay_as_it_was_recorded() -> None:
    """So the tape finds work that is unfit; the test above is no comparison with itself."""
    assert course("count", TapeRecorder()) != course("count")


def test_work_that_asks_the_device_is_refused_with_the_place() -> None:
    said = r"fast=graph: an update of Small cannot be recorded: it asks the device for values "
    with pytest.raises(RheoError, match=said + r"\(_local_scalar_dense at tests/algos/test_rec"):
        course("read", TapeRecorder())


def test_a_capture_that_fails_is_refused_with_its_reason() -> None:
    class Failing(TapeRecorder):
        def record(self, work: Callable[[], Any]) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(RheoError, match="cannot be recorded: operation not permitted .*capturing;"):
        course(recorder=Failing())


def test_results_are_kept_when_the_next_ones_are_written() -> None:
    algo, batch = Small(), torch.ones(4)
    algo.slow_every = 1
    work: Any = Recorded(algo, TapeRecorder())
    found = [work(batch)["loss"] for _ in range(8)]
    assert len({value.item() for value in found}) == 8


def test_it_is_of_a_gpu_one_process_and_an_update_in_two_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    algo: Any = Small()
    with pytest.raises(RheoError, match="launches of a GPU, and this is device=cpu; use fast=prec"):
        recorded(algo)
    algo.generator = type("", (), {"device": torch.device("cuda")})()
    assert isinstance(recorded(algo), Recorded)
    monkeypatch.setattr("rheo.ranks.size", lambda: 2)
    with pytest.raises(RheoError, match="several ranks"):
        recorded(algo)
    monkeypatch.undo()
    monkeypatch.delattr(Small, "learn_from")
    with pytest.raises(RheoError, match=r"Small.update is not divided into begin\(\) and learn"):
        recorded(algo)


def test_what_is_due_is_told_by_every_period() -> None:
    algo = Small()
    algo.rare_every = 3  # type: ignore[attr-defined]
    algo.updates = 6
    assert due(algo) == (True, True)
    algo.updates = 4
    assert due(algo) == (False, True)


def test_a_rate_that_is_a_tensor_stays_where_it_is_and_comes_back_from_a_checkpoint() -> None:
    one, two = Small(), Small()
    recordable(one.opt)
    rate = one.opt.param_groups[0]["lr"]
    set_rate(one.opt, 0.25)
    assert one.opt.param_groups[0]["lr"] is rate and rate.item() == 0.25
    two.opt.load_state_dict(one.opt.state_dict())
    set_rate(two.opt, 0.5)
    assert float(two.opt.param_groups[0]["lr"]) == 0.5 and rate.item() == 0.25
    recordable(one.opt)
    assert one.opt.param_groups[0]["lr"] is rate


def test_a_run_on_a_cpu_is_refused_before_any_work_and_one_that_was_recorded_is_evaluated_there(
    tiny: Callable[..., list[str]],
    unvouched: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", *tiny("sac", "r", "steps=60", "eval_every=1000")]
    assert main([*words, "fast=graph"]) == 2
    assert main([*words, "fast=graph", "dry=true"]) == 2
    said = "fast=graph: what is recorded are launches of a GPU"
    assert capsys.readouterr().err.count(said) == 2
    assert not Path("runs").exists()
    assert main(words) == 0
    unvouched(Path("runs/r"))
    file = Path("runs/r/config.yaml")
    text = file.read_text()
    assert "fast: precision" in text
    file.write_text(text.replace("fast: precision", "fast: graph"))
    assert main(["eval", "r", "episodes=2"]) == 0
    assert main(["resume", "r", "steps=80"]) == 2
    assert main(["resume", "r", "steps=80", "fast=precision"]) == 0
