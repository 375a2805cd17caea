"""Numbers that break: the first tensor is named, dumped, done again, left out or gone back from."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_episodes
from test_resume import assert_equal_runs, rows, stop_at
from torch import nn

from rheo.algos.optim import adam, step
from rheo.envs.batch import Batch
from rheo.envs.sources import Replay
from rheo.scripts import breaks, dumps
from rheo.scripts.breaks import Broke, Watch
from rheo.scripts.cli import main
from rheo.scripts.rates import slow
from rheo.scripts.store.run import Run
from rheo.scripts.store.state import capture, copied, tensors


class Roots:
    """A critic whose loss is finite where its gradient is not: the root of a square at 0."""

    pure = ()

    def __init__(self, lr: float = 0.1) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.lr, self.updates = lr, 0
        self.critic = nn.Linear(2, 2)
        self.critic_opt = adam(self.critic.parameters(), lr)

    def update(self, batch: Batch) -> dict[str, torch.Tensor]:
        self.updates += 1
        noise = torch.rand(len(batch.obs), 2, generator=self.generator)
        error = self.critic(batch.obs) * batch.reward[:, None] + noise * batch.reward[:, None]
        loss = error.square().sum().sqrt() + 0 * self.critic.weight.sum()
        step(self.critic_opt, loss)
        return {"critic/loss": loss.detach()}


def batch(reward: float = 1.0) -> Batch:
    obs = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    return Batch(obs, obs[:, None], torch.full((8,), reward), torch.full((8,), 0.9), obs)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    pairs = zip(tensors(a, ""), tensors(b, ""), strict=True)
    return all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in pairs)


@pytest.mark.parametrize("careful", [False, True])
def test_a_watched_update_is_the_update_bit_for_bit(careful: bool) -> None:
    torch.manual_seed(0)
    plain = Roots()
    torch.manual_seed(0)
    other = Roots()
    watch = Watch(other, other.update, careful)
    for _ in range(30):
        plain.update(batch())
        watch(batch())
    assert same(capture(plain), capture(other))


@pytest.mark.parametrize("careful", [False, True])
def test_a_gradient_is_named_although_the_loss_broke_an_update_later(careful: bool) -> None:
    """And the algorithm is as it was before that update, its noise too."""
    algo = Roots()
    watch = Watch(algo, algo.update, careful)
    for _ in range(5):
        torch.rand(3, generator=algo.generator)  # as acting does
        watch(batch())
    torch.rand(3, generator=algo.generator)
    before = copied(capture(algo))
    with pytest.raises(Broke) as caught:  # noqa: PT012
        watch(batch(0.0))
        watch(batch())
    assert "the gradient critic." in caught.value.finding.what
    assert "in a step of critic_opt" in caught.value.finding.what
    assert same(before, capture(algo)) and same(before, caught.value.finding.state)
    assert float(caught.value.finding.batch.reward[0]) == 0.0
    norms = caught.value.finding.norms
    assert {name for name, _ in norms} == {"critic.weight", "critic.bias"}
    assert any(math.isnan(norm) for _, norm in norms)


def test_a_loss_is_named_with_the_module_that_broke_and_norms_of_the_step_before() -> None:
    algo = Roots()
    watch = Watch(algo, algo.update, False)
    nn.init.constant_(algo.critic.weight, 10.0)
    watch(batch())
    with pytest.raises(Broke) as caught:
        watch(batch()._replace(obs=torch.full((8, 2), 3e38)))
    what = caught.value.finding.what
    assert what == "the loss of critic_opt is inf, from the output of critic on"
    norms = caught.value.finding.norms
    assert len(norms) == 2 and all(math.isfinite(norm) for _, norm in norms)


def test_a_batch_that_is_broken_itself_is_named_first() -> None:
    algo = Roots()
    watch = Watch(algo, algo.update, False)
    with pytest.raises(Broke, match="batch.reward is not finite"):
        watch(batch(math.nan))


def test_a_metric_that_is_no_number_ends_nothing_where_nothing_broke() -> None:
    algo = Roots()
    calls = []

    def update(given: Batch) -> dict[str, torch.Tensor]:
        calls.append(1)
        return algo.update(given) | {"policy/none": torch.tensor(math.nan)}

    torch.manual_seed(0)
    watch = Watch(algo, update, False)
    watch(batch())
    after = copied(capture(algo))
    assert len(calls) == 2 and algo.updates == 1  # it was done again under the glass, once
    watch(batch())
    assert len(calls) == 3 and not same(after, capture(algo))


def test_copies_are_made_as_batches_grow_and_never_of_broken_weights(monkeypatch: Any) -> None:
    algo = Roots()
    watch = Watch(algo, algo.update, False)
    watch.at_once = False  # as on a device, whose metrics are not looked at one by one
    watch(batch())
    watch.costs.extend([1e9] * 8)
    watch(batch())
    watch(batch(0.0))  # breaks
    watch(batch())
    assert len(watch.batches) == 4
    monkeypatch.setattr(breaks, "HELD", 1.0)
    monkeypatch.setattr(breaks, "FEW", 1)
    with pytest.raises(Broke, match="the gradient critic"):
        watch(batch())
    assert algo.updates == 2


def test_one_slow_copy_leaves_no_batches_of_minutes_in_memory(monkeypatch: Any) -> None:
    """A copy that takes a second where others take a hundredth, as on a machine that is taken."""
    algo = Roots()
    watch = Watch(algo, algo.update, False)
    costs, now, inside, most = [0.01, 0.01, 1.0], [0.0], [False], 0

    def clock() -> float:  # is asked before and after a copy, and else before an update
        if inside[0]:
            now[0] += costs.pop(0) if costs else 0.01
        inside[0] = False
        return now[0]

    def captured(algo: Any) -> dict[str, Any]:
        inside[0] = True
        return capture(algo)

    monkeypatch.setattr(breaks, "perf_counter", clock)
    monkeypatch.setattr(breaks, "capture", captured)
    for _ in range(3000):
        watch(batch())
        now[0] += 0.005
        most = max(most, len(watch.batches))
    assert not costs and 600 < most < 700  # 0.01 s for 3.3 s of 0.005 s each


def test_what_is_held_counts_the_noise_and_what_every_tensor_takes() -> None:
    algo = Roots()
    watch = Watch(algo, algo.update, False)
    watch.costs.extend([1e9] * 8)
    for _ in range(3):
        watch(batch())
    numbers = sum(t.numel() * t.element_size() for t in batch() if t is not None)
    noise = algo.generator.get_state().numel()
    tensors_held = 1 + sum(t is not None for t in batch())
    assert watch.held == 3 * (numbers + noise + breaks.TENSOR * tensors_held)


def test_learning_rates_are_slowed_where_schedules_read_them_and_in_optimisers() -> None:
    algo = Roots(0.1)
    slow(algo, 0.5)
    assert algo.lr == 0.05 and algo.critic_opt.param_groups[0]["lr"] == 0.05
    other = Roots(0.1)
    other.critic_opt.load_state_dict(algo.critic_opt.state_dict())
    slow(other, 0.5, groups=False)
    assert other.lr == 0.05 and other.critic_opt.param_groups[0]["lr"] == 0.05


# ------------------------------------------------------------------ runs


@pytest.fixture
def tiny(tiny: Any) -> Any:
    """With an update for every frame of SAC's: which of them breaks is counted."""
    return lambda *words: [*tiny(*words), *["source.update_ratio=1"] * (words[0] == "sac")]


def spoil(monkeypatch: Any, *which: int) -> None:
    """The rewards of these batches are beyond float32 once they are squared."""
    meant = Replay.next

    def spoiled(self: Replay, act: Any) -> Batch:
        found = meant(self, act)
        return found._replace(reward=found.reward + 1e30) if self.batches in which else found

    monkeypatch.setattr(Replay, "next", spoiled)


def dumped(name: str) -> list[Path]:
    return sorted(Path("runs", name, "broken").iterdir())


def test_a_run_that_breaks_names_the_tensor_and_its_dump_breaks_again(
    tiny: Any, monkeypatch: Any, capsys: Any
) -> None:
    spoil(monkeypatch, 50)
    assert main(["train", *tiny("sac", "a", "seed=3")]) == 4
    error = capsys.readouterr().err
    assert "the loss of critic_opt is inf" in error and "seed 3)" in error
    assert "largest gradient norms: critic." in error
    (dump,) = dumped("a")
    assert f"rheo replay runs/a/broken/{dump.name}" in error
    assert f"(step {int(dump.name)}, " in error
    assert {file.suffix for file in dump.iterdir() if file.is_file()} == {".json", ".safetensors"}
    moved = Path("elsewhere")
    shutil.move(dump, moved)
    shutil.rmtree("runs/a")
    assert main(["replay", str(moved)]) == 4
    out = capsys.readouterr().out
    assert "breaks again: the loss of critic_opt is inf" in out
    assert out.count("gradient norm") == 0  # there was no gradient: the loss broke


def test_a_dump_that_does_not_break_ends_with_0_and_a_changed_one_is_refused(
    tiny: Any, monkeypatch: Any, capsys: Any
) -> None:
    spoil(monkeypatch, 50)
    assert main(["train", *tiny("sac", "a")]) == 4
    (dump,) = dumped("a")
    about, state, broken = dumps.read(dump)
    sound = broken._replace(reward=broken.reward.clamp(-1, 1))
    finding = breaks.Finding("a test", [], state, sound, {})
    assert main(["replay", str(dumps.write(Path("runs/a"), finding, about))]) == 0
    assert "nothing breaks here" in capsys.readouterr().out
    config = dump / "run" / "config.yaml"
    config.write_text(config.read_text().replace("critic_lr", "critic_rl"))
    assert main(["replay", str(dump)]) == 3
    assert "config.yaml: was changed" in capsys.readouterr().err
    assert main(["replay", "runs/a"]) == 2
    assert "no dump of a broken update" in capsys.readouterr().err
    assert main(["replay", str(dump), "steps=3"]) == 2


def test_a_limit_that_is_passed_is_dumped_too(tiny: Any, capsys: Any) -> None:
    assert main(["train", *tiny("sac", "a", "limits.q=1e-9")]) == 4
    assert "first to break: critic/q is " in capsys.readouterr().err
    assert main(["replay", str(dumped("a")[0])]) == 4
    out = capsys.readouterr().out
    assert "breaks again: critic/q is" in out and "gradient norm" in out


def test_an_update_on_policy_is_dumped_and_breaks_again(tiny: Any, capsys: Any) -> None:
    assert main(["train", *tiny("ppo", "a", "algo.learn.policy_lr=1e4")]) == 4
    said = capsys.readouterr().err.partition("first to break: ")[2].partition("\n")[0]
    assert said
    assert main(["replay", str(dumped("a")[-1])]) == 4
    assert f"breaks again: {said}" in capsys.readouterr().out


def test_cloning_that_breaks_is_dumped(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    data = write_episodes(tmp_path / "big.npz", [20, 20])
    assert main(["train", *tiny("bc", "a", "algo.lr=1e30"), f"data={data}"]) == 4
    said = capsys.readouterr().err
    assert "first to break: " in said
    assert main(["replay", str(dumped("a")[-1])]) == 4


def test_broken_updates_are_left_out_as_often_as_is_asked(
    tiny: Any, monkeypatch: Any, capsys: Any
) -> None:
    """They are told and counted, and the run goes on exactly when it is stopped behind them."""
    spoil(monkeypatch, 30, 60, 61)
    words = ["limits.skip=3", "save_every=1000"]
    assert main(["train", *tiny("sac", "straight", *words)]) == 0
    error = capsys.readouterr().err
    assert "left out (1 of limits.skip=3)" in error and "(3 of limits.skip=3)" in error
    assert rows("straight")[-2]["updates/skipped"] == 3.0
    updates = Run.open("straight").load()["algo"]["updates"]  # type: ignore[index]
    batches = Run.open("straight").load()["source"]["batches"]  # type: ignore[index]
    assert batches - updates == 3
    with monkeypatch.context() as patch:
        stop_at(patch, 80)
        assert main(["train", *tiny("sac", "stopped", *words)]) == 75
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")
    assert main(["train", *tiny("sac", "less", "limits.skip=2")]) == 4


def test_a_run_goes_back_once_with_smaller_rates_and_can_be_stopped_there(
    tiny: Any, monkeypatch: Any, capsys: Any
) -> None:
    spoil(monkeypatch, 110)
    words = ["limits.rollback=0.5", "save_every=50"]
    meant, spoiled = Replay.next, []

    def once(self: Replay, act: Any) -> Batch:  # the smaller rate mends it
        found = meant(self, act)
        if self.batches == 110 and not spoiled:
            spoiled.append(1)
            return found
        return found._replace(reward=found.reward.clamp(-100, 100))

    monkeypatch.setattr(Replay, "next", once)
    assert main(["train", *tiny("sac", "straight", *words)]) == 0
    error = capsys.readouterr().err
    assert "back to step 1" in error and "learning rates x 0.5" in error
    starts = json.loads(Path("runs/straight/run.json").read_text())["starts"]
    assert starts[1]["rolled_back"]["rate"] == 0.5
    assert "the loss of critic_opt is inf" in starts[1]["rolled_back"]["why"]
    steps = [row["step"] for row in rows("straight") if "critic/loss" in row]
    assert steps == sorted(set(steps))
    tree = Run.open("straight").load()
    assert tree is not None and tree["loop"]["rate"] == 0.5
    rates = {group["lr"] for group in tree["algo"]["critic_opt"]["param_groups"]}
    assert rates == {Run.open("straight").config["algo"]["critic_lr"] / 2}

    spoiled.clear()
    with monkeypatch.context() as patch:
        stop_at(patch, 170)
        assert main(["train", *tiny("sac", "stopped", *words)]) == 75
    assert main(["resume", "stopped"]) == 0
    assert_equal_runs("straight", "stopped")


def test_what_breaks_again_after_going_back_ends(tiny: Any, monkeypatch: Any, capsys: Any) -> None:
    spoil(monkeypatch, 110)
    words = ["limits.rollback=0.5", "save_every=50"]
    assert main(["train", *tiny("sac", "a", *words)]) == 4
    error = capsys.readouterr().err
    assert error.count("back to step") == 1 and "training broke and stops here" in error
    for bad in ("limits.rollback=2", "limits.skip=-1", "limits.skip=0.5"):
        assert main(["train", *tiny("sac", "b", bad)]) == 2
        assert bad.partition("=")[0] in capsys.readouterr().err
