"""What is changed, cut or lost in a run folder is noticed: whichever byte of whichever file."""

import json
import logging
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from shipped import needs, small

from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.store.journal import Journal
from rheo.scripts.store.run import Run
from rheo.scripts.store.stamps import LINE, is_whole, lined, stamped, unstamped
from rheo.scripts.store.where import stored
from rheo.scripts.verifying import look

PERIODS = ["steps=120", "log_every=20", "eval_every=60", "save_every=60", "episodes=2"]
LOGGED = logging.getLogger("rheo")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs `a`, in an environment, and `b`, from recorded data, at their ends."""
    from conftest import write_episodes

    home = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(home)
    data = write_episodes(home / "data.npz", [9, 30, 25, 40])
    for algo, name in (("sac", "a"), ("bc", "b")):
        words = [*needs(algo, data), *small(algo), *PERIODS, f"name={name}"]
        assert main(["train", *words]) == 0
    os.chdir(before)
    yield home / "runs"


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `a`, in a working folder of its own."""
    return copied(made, tmp_path, monkeypatch, "a")


def copied(made: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    monkeypatch.chdir(place)
    shutil.copytree(made / name, place / "runs" / name)
    LOGGED.propagate = True
    return Path("runs", name)


def faults(folder: Path) -> list[str]:
    """What `rheo checkpoint verify` finds."""
    return [found.what for found in look(folder) if found.fault]


def files_of(folder: Path) -> list[Path]:
    """The files that are compared; what is drawn from them is drawn anew."""
    drawn = ("events", "curve.png")
    found = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    return sorted(file for file in found if file.parts[0] not in drawn)


def flipped(raw: bytes, at: int, bit: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_whole_run_is_found_whole(made: Path, tmp_path, monkeypatch, capsys, name: str) -> None:
    folder = copied(made, tmp_path, monkeypatch, name)
    assert main(["checkpoint", "verify", name]) == 0
    told = capsys.readouterr().out
    assert f"{folder}: " in told and "none with a fault" in told and "FAULT" not in told
    assert all(str(file) in told for file in files_of(folder))


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_bit_that_flips_anywhere_is_noticed(made: Path, tmp_path, monkeypatch, name) -> None:
    """Every region of every file: each file in equal parts, a seeded byte of each."""
    folder, chance = copied(made, tmp_path, monkeypatch, name), random.Random(0)
    unseen, files, count = [], files_of(folder), 0
    for file in files:
        raw, parts = (folder / file).read_bytes(), -(-100 // len(files))
        for part in range(parts):
            first, last = part * len(raw) // parts, max(1, (part + 1) * len(raw) // parts)
            at, bit = chance.randrange(first, max(last, first + 1)), chance.randrange(8)
            (folder / file).write_bytes(flipped(raw, at, bit))
            count += 1
            unseen += [] if faults(folder) else [(str(file), at, bit)]
        (folder / file).write_bytes(raw)
    assert count >= 100 and unseen == [] and faults(folder) == []


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.99, None], ids=["0", "50", "99", "deleted"])
def test_a_file_that_is_cut_or_gone_is_noticed(
    made: Path, tmp_path, monkeypatch, name: str, left: float | None
) -> None:
    folder = copied(made, tmp_path, monkeypatch, name)
    for file in files_of(folder):
        raw = (folder / file).read_bytes()
        if left is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(raw[: int(left * len(raw))])
        assert faults(folder), file
        (folder / file).write_bytes(raw)
    assert faults(folder) == []


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "metrics.jsonl", "data.json", "eval"])
def test_a_resume_says_what_was_flipped_or_refuses(
    made: Path, tmp_path, monkeypatch, caplog, file: str
) -> None:
    """What it reads of a run beside the checkpoints, whose own test is in test_checkpoint.py."""
    name, chance = "b" if file == "data.json" else "a", random.Random(1)
    folder = copied(made, tmp_path, monkeypatch, name)
    kept = tmp_path / "kept"
    folder.rename(kept)
    inner = f"eval/{60:012d}.json" if file == "eval" else file
    size, refused = (kept / inner).stat().st_size, 0
    for part in range(12):
        shutil.copytree(kept, folder)
        raw = (folder / inner).read_bytes()
        at = chance.randrange(part * size // 12, (part + 1) * size // 12)
        (folder / inner).write_bytes(flipped(raw, at, chance.randrange(8)))
        caplog.clear()
        try:
            with Run.open(name, write=True) as run:
                assert run.resume() is not None
            assert inner.rpartition("/")[2] in caplog.text, (at, caplog.text)
        except RheoError as error:
            refused += 1
            assert "config.yaml was changed" in str(error), error
        shutil.rmtree(folder)
    assert refused == 0 or file == "config.yaml"


# ---- the configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0.0, 0.3, None])
def test_a_lost_or_cut_configuration_is_restored(run: Path, left, caplog) -> None:
    file = run / "config.yaml"
    text = file.read_text()
    if left is None:
        file.unlink()
    else:
        lines = text.splitlines(keepends=True)
        file.write_text("".join(lines[: int(left * len(lines))]))
    assert main(["eval", "a", "episodes=1"]) == 0
    assert "config.yaml" in caplog.text and "checkpoint" in caplog.text
    assert main(["resume", "a", "steps=140"]) == 0
    assert file.read_text().partition(LINE)[0] == text.partition(LINE)[0].replace(
        "steps: 120\n", "steps: 140\n", 1
    )
    assert faults(run) == []


@pytest.mark.parametrize("verb", [["eval"], ["resume"], ["train", "algo=rfm", "init=a"]])
def test_a_changed_value_is_named_and_refused(run: Path, verb, capsys) -> None:
    file = run / "config.yaml"
    text = file.read_text()
    assert "policy_lr: 0.0003" in text
    file.write_text(text.replace("policy_lr: 0.0003", "policy_lr: 1.0"))
    words = verb if verb[-1] == "init=a" else [*verb, "a"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "algo.policy_lr is 1.0 there and 0.0003 in the checkpoint" in said
    assert "Remove that file" in said and "Traceback" not in said
    file.write_text(lined(text.partition(LINE)[0].replace("policy_lr: 0.0003", "policy_lr: 1.0")))
    assert main(words) == 2  # with a digest of its own too
    file.unlink()
    assert stored(run)["algo"]["policy_lr"] == 0.0003


def test_what_a_resume_takes_anew_is_no_change(run: Path, capsys) -> None:
    assert main(["resume", "a", "steps=140", "log_every=7", "limits.q=1e5"]) == 0
    run_config = stored(run)
    assert (run_config["steps"], run_config["log_every"]) == (140, 7)
    shutil.rmtree(run / "ckpt" / f"{140:012d}")  # as if it were killed before its next save
    assert main(["resume", "a"]) == 0 and stored(run)["steps"] == 140
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("steps: 140\n", "steps: 160\n", 1))
    capsys.readouterr()
    assert main(["resume", "a"]) == 2
    assert "steps is 160 there and 140 in the checkpoint" in capsys.readouterr().err
    assert main(["resume", "a", "steps=160"]) == 0


def test_a_configuration_that_was_changed_before_the_first_save_is_refused(run: Path) -> None:
    shutil.rmtree(run / "ckpt")
    for name in ("metrics.jsonl", "run.json"):
        (run / name).unlink()
    shutil.rmtree(run / "eval")
    assert stored(run)["seed"] == 0
    file = run / "config.yaml"
    text = file.read_text().replace("seed: 0\n", "seed: 1\n", 1)
    file.write_text(text)
    with pytest.raises(RheoError, match="no checkpoint to compare it with; remove that line"):
        stored(run)
    file.write_text(text.partition(LINE)[0])
    assert stored(run)["seed"] == 1


def leaves(node: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*place, key)
        if isinstance(value, dict):
            yield from leaves(value, (*place, key))


def test_no_key_that_is_missing_is_a_traceback(run: Path, unvouched) -> None:
    """Of an older run, where no checkpoint brings it back."""
    unvouched(run)
    text = (run / "config.yaml").read_text()
    whole = OmegaConf.to_container(OmegaConf.create(text))
    for place in leaves(whole):
        tree: Any = OmegaConf.to_container(OmegaConf.create(text))
        node = tree
        for key in place[:-1]:
            node = node[key]
        del node[place[-1]]
        (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(tree)))
        with Answered():
            Run.open("a")
        with Answered():
            Run.open("a", write=True).close()


class Answered:
    """Lets a RheoError pass, which is one message, and nothing else."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, RheoError)


# ---- the log -------------------------------------------------------------------------------------


HOSTILE = [
    *('{"step": 40}', '{"step": 40, "eval/return": 3.0}', '{"step": 1e400}', '{"step": true}'),
    *('{"step": 60, "eval/return": "x"}', '{"step": 60, "eval/return": [1]}', "[" * 9000),
    *('{"step": 60, "eval/return": {"a": {}}}', '{"step": ' + "9" * 5000 + "}", "null", "[]"),
    *('{"step": 60, "eval/return": null, "eval/return_low": 3}', '{"step": -1}', '{"step": "6"}'),
    *('{"step": 60, "time/wall": null, "eval/return": 1}', '{"step": 60, "val/loss": -1e308}'),
    *('{"step": 60, "eval/return": NaN}', '{"eval/return": 1}', '"\\ud800"', "\x00", "{}"),
]


def test_hostile_rows_and_evaluations_crash_nothing(run: Path, capsys) -> None:
    (run / "config.yaml").write_text((run / "config.yaml").read_text())
    with (run / "metrics.jsonl").open("a") as log:
        log.write("\n".join(HOSTILE) + "\n")
    rows = Journal(run / "metrics.jsonl").rows()
    assert all(type(row["step"]) is int for row in rows) and len(rows) >= 10
    out = ["curves=c.png", "reach=5", "minutes=1"]
    for words in (["compare", "a"], *(["compare", "a", word] for word in out), ["report", "runs"]):
        assert main(words) in (0, 2, 3), words
    assert main(["resume", "a", "steps=140"]) == 0
    odd: list[Any] = [
        *([], {}, {"step": 120}, {"step": 120, "episodes": {}}, {"step": "x", "episodes": []}),
        *({"step": 120, "episodes": [{"ret": "x"}]}, {"step": 120, "episodes": [{"ret": [1]}]}),
        {"step": 120, "episodes": [{"ret": 1.0}], "references": {"low": "a", "high": 1}},
        {"step": 120, "episodes": [{"ret": 1.0}], "references": [1, 2]},
        {"step": 120, "episodes": [{"ret": 1.0}], "env": ["x"], "changed": 3, "label": {}},
        {"step": 120, "episodes": [{"ret": 10**400}], "decision_ms": "slow"},
        {"step": 120, "episodes": [{"length": 3}]},
    ]
    for content in odd:
        (run / "eval" / f"{140:012d}.json").write_text(json.dumps(content))
        assert main(["compare", "a"]) in (2, 3), content
        assert main(["report", "runs"]) in (0, 2, 3), content
    assert "Traceback" not in capsys.readouterr().err


def test_rows_that_are_gone_are_missed_and_the_run_goes_on(run: Path, caplog) -> None:
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], *lines[4:]]))
    assert main(["resume", "a", "steps=140"]) == 0
    assert f"damaged: of the {len(lines)} rows up to step" in caplog.text
    assert file.read_bytes().startswith(b"".join([*lines[:2], *lines[4:]]))
    assert faults(run) == ["ckpt/000000000120: log"]  # that of before


def test_a_row_logged_twice_at_the_step_of_a_save_is_not_kept_twice(run: Path) -> None:
    """One that came after the save is written once more by the run that goes on from it."""
    file = run / "metrics.jsonl"
    before = file.read_bytes()
    with Run.open("a", write=True) as again:
        again.log(120, {"eval/return": 3.0})
    assert file.read_bytes() != before
    with Run.open("a", write=True) as again:
        again.resume()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", '{"starts": "x"}', '{"starts": [3]}', '{"starts": [{"versions": []}]}'),
        *('{"starts": [{"step": "x", "command": [1, {}], "versions": {"torch": []}}]}', "\xff{"),
        '{"starts": []}',
    ],
)
@pytest.mark.parametrize("verb", ["eval", "resume", "report"])
def test_no_run_json_stops_anything(run: Path, text: str, verb: str, capsys) -> None:
    (run / "run.json").write_text(text, encoding="latin1")
    words = {"eval": ["a", "episodes=1"], "resume": ["a", "steps=130"], "report": ["runs"]}[verb]
    assert main([verb, *words]) == 0
    if verb == "resume":
        starts = json.loads((run / "run.json").read_text())["starts"]
        assert starts[-1]["step"] == 120


# ---- what is lost --------------------------------------------------------------------------------


def shared(run: Path) -> list[Path]:
    """Files of the replay that both checkpoints of a run have, by the younger one's names."""
    older, newer = sorted(path for path in (run / "ckpt").iterdir() if path.name.isdigit())
    return sorted(file for file in newer.glob("source_*") if (older / file.name).exists())


def test_rot_that_both_checkpoints_share_is_named_and_left_out_only_when_asked(
    run: Path, capsys, caplog
) -> None:
    """One file on the disk, so no checkpoint to fall back to; of the policy nothing is lost."""
    assert main(["resume", "a", "steps=180"]) == 0
    whole = Run.open("a").load()
    (rotten,) = shared(run)
    assert rotten.stat().st_nlink == 2
    rotten.write_bytes(flipped(rotten.read_bytes(), rotten.stat().st_size - 7, 3))
    assert main(["checkpoint", "verify", "a"]) == 3
    found = capsys.readouterr().out.splitlines()
    assert sum(rotten.name in line and "FAULT: corrupted" in line for line in found) == 2
    capsys.readouterr()
    assert main(["resume", "a", "steps=240"]) == 3
    said = capsys.readouterr().err
    assert f"{rotten.name}: corrupted" in said and "resume runs/a --without-damaged" in said
    assert main(["eval", "a", "episodes=1"]) == 0
    assert f"{rotten.name}: corrupted" in caplog.text and "not needed here" in caplog.text
    caplog.clear()
    tree = Run.open("a").load(sparing=True)
    assert whole is not None and tree is not None
    rows, left = (each["source"]["buffer"]["rows"] for each in (whole, tree))
    begin, end = (int(each) for each in rotten.stem.split("_")[-2:])
    assert left.lost == end - begin > 0 and left.span == (0, len(rows.take(*rows.span)) - left.lost)
    kept = [rows.take(rows.begin, begin), rows.take(end, rows.end)]
    assert torch.equal(left.take(*left.span), torch.cat(kept)) and len(kept[1])
    assert main(["resume", "a", "--without-damaged", "steps=240"]) == 0
    assert "These rows are left out" in caplog.text
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert starts[-1]["left_out"] == [rotten.name]
    after = Run.open("a").load()
    assert (
        after is not None
        and after["source"]["buffer"]["size"] == whole["source"]["buffer"]["size"] + 60 - left.lost
    )
    assert main(["resume", "a", "--without-damaged", "--restart"]) == 2


def test_a_replay_of_which_no_row_is_left_is_no_way_to_go_on(run: Path, capsys) -> None:
    for file in (run / "ckpt").glob("0*/source_*"):
        file.write_bytes(flipped(file.read_bytes(), file.stat().st_size - 7, 3))
    assert main(["resume", "a", "--without-damaged"]) == 3
    said = capsys.readouterr().err
    assert "no row of its replay is left" in said and "--restart" in said


def test_nothing_is_left_out_of_a_whole_run(run: Path, caplog) -> None:
    assert main(["resume", "a", "--without-damaged", "steps=130"]) == 0
    assert "no row is damaged, so none is left out" in caplog.text


def test_a_lost_checkpoint_is_begun_anew_only_when_asked_and_all_is_kept(run: Path, capsys) -> None:
    log, judged = (run / "metrics.jsonl").read_bytes(), sorted(os.listdir(run / "eval"))
    for file in run.glob("ckpt/*/manifest.json"):
        file.unlink()
    weights = {file.read_bytes() for file in run.glob("ckpt/*/algo.safetensors")}
    assert main(["resume", "a"]) == 3
    said = capsys.readouterr().err
    assert "is no checkpoint" in said and "rheo resume runs/a --restart" in said
    assert (run / "metrics.jsonl").read_bytes() == log
    assert main(["resume", "a", "--restart"]) == 0
    assert (run / "metrics.jsonl.1").read_bytes() == log
    assert sorted(os.listdir(run / "eval.1")) == judged
    assert {file.read_bytes() for file in run.glob("ckpt/*.broken/algo.safetensors")} == weights
    assert [row["step"] for row in Run.open("a").rows()][0] == 0 and faults(run) == []
    assert main(["resume", "a", "restart=true"]) == 2
    assert "has a checkpoint of step 120" in capsys.readouterr().err


@pytest.mark.parametrize("told", ["metrics.jsonl", "run.json", "eval"])
def test_each_that_tells_of_a_step_keeps_a_run_from_starting_over(run: Path, told: str) -> None:
    shutil.rmtree(run / "ckpt")
    (run / "run.json").write_text(stamped({"starts": [{"step": 0}, {"step": 60}]}))
    for name in {"metrics.jsonl", "run.json", "eval"} - {told}:
        shutil.rmtree(run / name) if name == "eval" else (run / name).unlink()
    assert main(["resume", "a"]) == 3


def test_a_checkpoint_without_a_manifest_is_put_aside_and_not_deleted(run: Path, caplog) -> None:
    newest = max((run / "ckpt").iterdir())
    (newest / "manifest.json").unlink()
    (run / "ckpt" / ".staging-1").mkdir()
    assert main(["resume", "a"]) == 0
    aside = newest.with_name(f"{newest.name}.broken")
    assert (aside / "algo.safetensors").exists() and f"set aside as {aside.name}" in caplog.text
    assert not (run / "ckpt" / ".staging-1").exists()


# ---- links and locks -----------------------------------------------------------------------------


PARTS = ["lock", "config.yaml", "metrics.jsonl", "run.json", "ckpt", "eval", "events", "curve.png"]


@pytest.mark.parametrize("part", [*PARTS, "ckpt/000000000120", "eval/000000000120.json"])
def test_a_run_whose_parts_are_links_is_refused(run: Path, tmp_path, part: str, capsys) -> None:
    elsewhere = tmp_path / "elsewhere"
    if (run / part).exists():
        (run / part).rename(elsewhere)
    else:
        elsewhere.write_text("precious")
    (run / part).symlink_to(elsewhere)
    before = elsewhere.read_bytes() if elsewhere.is_file() else b""
    for words in (["resume", "a"], ["eval", "a", "episodes=1"], ["compare", "a"]):
        assert main(words) == 2, words
        assert f"{part}: is a link" in capsys.readouterr().err
    assert not before or elsewhere.read_bytes() == before


def test_a_lock_that_shares_its_content_with_a_file_elsewhere_is_refused(run: Path, tmp_path):
    (tmp_path / "precious").write_text("x")
    os.link(tmp_path / "precious", run / "lock")
    assert main(["resume", "a"]) == 2 and (tmp_path / "precious").read_text() == "x"
    (run / "lock").unlink()
    os.mkfifo(run / "lock")
    assert main(["resume", "a"]) == 2


@pytest.mark.parametrize("then", ["removed", "replaced", "folder"])
def test_a_run_that_lost_its_lock_writes_nothing_more(run: Path, then: str) -> None:
    with Run.open("a", write=True) as first:
        first.log(121, {"x/y": 1.0})
        log = (run / "metrics.jsonl").read_bytes()
        if then == "folder":
            shutil.rmtree(run)
        else:
            (run / "lock").unlink()
        second = Run.open("a", write=True) if then == "replaced" else None
        for write in (
            lambda: first.log(122, {"x/y": 1.0}),
            lambda: first.save(122, {"n": 1}),
            lambda: first.record_eval(122, []),
        ):
            with pytest.raises(RheoError, match="lock: was removed or replaced") as caught:
                write()
            assert caught.value.code == 3
    if second is not None:
        assert (run / "lock").exists() and (run / "metrics.jsonl").read_bytes() == log
        second.close()
    assert run.exists() is (then != "folder")


# ---- the checks themselves -----------------------------------------------------------------------


def test_a_stamp_survives_no_change_of_one_byte() -> None:
    node = {"step": 3, "a/b": 0.25, "n": None}
    raw = stamped(node).encode()
    assert unstamped(raw) == node == unstamped(json.dumps(node).encode())
    for at in range(len(raw)):
        for value in range(256):
            changed = raw[:at] + bytes([value]) + raw[at + 1 :]
            if changed.strip() == raw.strip():
                continue
            with pytest.raises(ValueError):
                unstamped(changed)


def test_a_lines_digest_survives_no_flip() -> None:
    raw = lined("a: 1\nb: 2\n").encode()
    assert is_whole(raw) and is_whole(b"a: 1\n") is None
    for at in range(len(raw)):
        assert not any(is_whole(flipped(raw, at, bit)) for bit in range(8))
