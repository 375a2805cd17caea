"""A replay in checkpoints: written once, exact wherever the ring stands, whole or refused."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rheo.envs.batch import Batch
from rheo.envs.buffer import Buffer
from rheo.envs.rows import Rows
from rheo.scripts.store import checkpoint, segments
from rheo.scripts.store.tree import Broken

WIDTH = 4 * (2 + 1 + 2 + 1 + 1)  # bytes of a row of `ring`


def ring(capacity: int) -> Buffer:
    return Buffer(capacity, 2, 1, 1, "cpu")


def fill(buffer: Buffer, count: int) -> None:
    """Adds rows that say when they came."""
    for first in range(buffer.added, buffer.added + count, buffer.capacity):
        rows = min(buffer.capacity, buffer.added + count - first, count)
        x = torch.arange(first, first + rows, dtype=torch.float32)[:, None]
        batch = Batch(x.expand(-1, 2), x[:, None], x[:, 0], x[:, 0], x.expand(-1, 2))
        buffer.add(batch, torch.ones(rows, dtype=torch.bool))


def save(folder: Path, step: int, buffer: Buffer) -> Path:
    return checkpoint.write(folder, step, {"source": {"buffer": buffer.state_dict()}}, keep=2)


def revived(path: Path, capacity: int) -> Buffer:
    buffer = ring(capacity)
    buffer.load_state_dict(checkpoint.read(path)["source"]["buffer"])
    return buffer


def equal(a: Buffer, b: Buffer) -> bool:
    at = (a.size, a.cursor, a.added) == (b.size, b.cursor, b.added)
    return at and torch.equal(a.rows[: a.size], b.rows[: b.size])


def written(path: Path) -> int:
    """Bytes of segments that no other checkpoint has."""
    files = [file.stat() for file in path.glob("source_*")]
    return sum(each.st_size for each in files if each.st_nlink == 1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of ten rows at most."""
    monkeypatch.setattr(segments, "LARGEST", 10 * WIDTH)


@pytest.mark.parametrize("seed", range(8))
def test_a_ring_comes_back_as_it_was_whatever_was_saved_before(
    tmp_path: Path, short: None, seed: int
) -> None:
    """Adds, saves, resumes and lost files in any order; the ring is smaller than a segment too."""
    chance = random.Random(seed)
    capacity = chance.choice([1, 7, 23, 50])
    buffer = ring(capacity)
    for step in range(25):
        fill(buffer, chance.choice([0, 1, 2, 5, 17, 60]))
        path = save(tmp_path, step, buffer)
        other = revived(path, capacity)
        assert equal(buffer, other)
        assert all(checkpoint.read(each) for each in checkpoint.found(tmp_path))
        lives = buffer.added - buffer.size
        spans = json.loads((path / "manifest.json").read_bytes())["tables"]["source_buffer_rows"]
        assert all(end > lives or end == begin for begin, end in spans["segments"])
        if chance.random() < 0.3:
            buffer = other  # as a resumed run has it
        if chance.random() < 0.1:
            chance.choice(list(path.glob("source_*"))).unlink()
            shutil.rmtree(path) if chance.random() < 0.5 else None
            older = checkpoint.found(tmp_path)
            shutil.rmtree(older[0]) if older and older[0] == path else None


def test_a_save_costs_the_rows_since_the_last_one(tmp_path: Path) -> None:
    buffer = ring(100_000)
    fill(buffer, 50_000)
    first = save(tmp_path, 1, buffer)
    whole = written(first)
    assert whole > 50_000 * WIDTH
    for step in range(2, 9):  # the ring is full after two
        fill(buffer, 2000)
        path = save(tmp_path, step, buffer)
        assert written(path) < 2.1 * 2000 * WIDTH or step in (3, 5)  # which write small ones anew
    names = {file.stat().st_ino: file.stat().st_size for file in tmp_path.glob("0*/source_*")}
    assert sum(names.values()) < 1.2 * whole + 30_000 * WIDTH  # of two checkpoints, on the disk


def test_many_small_saves_are_few_files_and_little_is_written_again(tmp_path: Path) -> None:
    buffer, total = ring(10_000), 0
    for step in range(256):
        fill(buffer, 10)
        total += written(save(tmp_path, step, buffer))
    assert len(list(checkpoint.found(tmp_path)[0].glob("source_*"))) <= 9
    assert total < 9 * 2560 * WIDTH + 256 * 200  # a row as often as a counter of 8 bits carries


def test_a_copied_or_moved_folder_goes_on(tmp_path: Path, short: None) -> None:
    buffer = ring(100)
    for step in (1, 2):
        fill(buffer, 30)
        save(tmp_path / "a", step, buffer) if step > 1 else save_new(tmp_path / "a", buffer)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.move(tmp_path / "a", tmp_path / "c")
    assert all(file.stat().st_nlink == 1 for file in (tmp_path / "b").rglob("*.safetensors"))
    for place in ("b", "c"):
        other = revived(checkpoint.found(tmp_path / place)[0], 100)
        assert equal(buffer, other)
        fill(other, 5)
        path = save(tmp_path / place, 3, other)
        assert equal(other, revived(path, 100)) and written(path) < 6 * WIDTH + 200
    fill(buffer, 5)  # and a run whose folder is moved under it
    path = save_new(tmp_path / "a", buffer)
    assert equal(buffer, revived(path, 100))


def save_new(folder: Path, buffer: Buffer) -> Path:
    folder.mkdir()
    return save(folder, 1, buffer)


def test_without_links_everything_is_written(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    buffer = ring(33)
    for step in range(4):
        fill(buffer, 14)
        path = save(tmp_path, step, buffer)
        assert equal(buffer, revived(path, 33))
        assert written(path) >= buffer.size * WIDTH


def test_a_broken_segment_is_a_broken_checkpoint(tmp_path: Path, short: None) -> None:
    buffer = ring(100)
    fill(buffer, 30)
    older = save(tmp_path, 1, buffer)
    fill(buffer, 10)
    newer = save(tmp_path, 2, buffer)
    (own,) = [file for file in newer.glob("source_*") if file.stat().st_nlink == 1]
    content = bytearray(own.read_bytes())
    content[-3] ^= 4
    own.write_bytes(content)
    with pytest.raises(Broken, match=rf"{own.name}: corrupted"):
        checkpoint.read(newer)
    checkpoint.read(older)
    own.unlink()
    with pytest.raises(Broken, match=rf"{own.name}: unreadable"):
        checkpoint.read(newer)


def test_a_segment_that_somebody_wrote_to_is_written_anew(tmp_path: Path, short: None) -> None:
    buffer = ring(100)
    fill(buffer, 30)
    path = save(tmp_path, 1, buffer)
    hurt = sorted(path.glob("source_*"))[1]
    content = bytearray(hurt.read_bytes())
    content[-1] ^= 1
    hurt.write_bytes(content)
    fill(buffer, 10)
    assert equal(buffer, revived(save(tmp_path, 2, buffer), 100))


def test_two_that_go_on_from_one_checkpoint_keep_apart(tmp_path: Path, short: None) -> None:
    buffer = ring(100)
    fill(buffer, 30)
    tree = checkpoint.read(save_new(tmp_path / "a", buffer))["source"]["buffer"]
    one, two = ring(100), ring(100)
    one.load_state_dict(tree)
    two.load_state_dict(tree)
    fill(one, 10)
    (tmp_path / "b").mkdir()
    save(tmp_path / "b", 2, one)
    two.add(Batch(*(torch.full(shape, 7.0) for shape in SHAPES)), torch.ones(10, dtype=torch.bool))
    assert equal(two, revived(save(tmp_path / "a", 2, two), 100))


SHAPES = ((10, 2), (10, 1, 1), (10,), (10,), (10, 2))


@pytest.mark.parametrize("count", [3, 7, 19])
def test_a_replay_of_one_tensor_is_read(count: int) -> None:
    """As checkpoints of format 1 have it: the ring as it lies in memory."""
    buffer, other = ring(7), ring(7)
    for _ in range(count):
        fill(buffer, 1)
    state = buffer.state_dict() | {"rows": buffer.rows[: buffer.size].clone()}
    other.load_state_dict(state)
    assert torch.equal(other.rows[: other.size], buffer.rows[: buffer.size])
    assert (other.size, other.cursor) == (buffer.size, buffer.cursor)
    assert other.added % 7 == buffer.added % 7
    assert other.state_dict()["rows"].take(*other.state_dict()["rows"].span)[-1, 0] == count - 1


def test_nothing_to_keep_is_kept_too(tmp_path: Path) -> None:
    buffer = ring(5)
    assert equal(buffer, revived(save(tmp_path, 1, buffer), 5))
    fill(buffer, 3)
    assert equal(buffer, revived(save(tmp_path, 2, buffer), 5))


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "begin": lambda table: table.update(begin=-5),
    "end": lambda table: table.update(end=99),
    "gap": lambda table: table["segments"].pop(1),
    "none": lambda table: table.update(segments=[]),
    "place": lambda table: table.update(segments=[["../x", 3]]),
    "text": lambda table: table.update(begin="0"),
    "kind": lambda table: table.update(segments=7),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_table_is_refused(tmp_path: Path, short: None, name: str) -> None:
    buffer = ring(100)
    fill(buffer, 30)
    path = save(tmp_path, 1, buffer)
    manifest = json.loads((path / "manifest.json").read_bytes())
    del manifest["sha256"]
    FORGED[name](manifest["tables"]["source_buffer_rows"])
    (path / "manifest.json").write_bytes(checkpoint.sealed(manifest))
    with pytest.raises(Broken, match="not a checkpoint of this program"):
        checkpoint.read(path)


def test_rows_are_the_same_however_they_are_parted() -> None:
    table = torch.randn(9, 2)
    parted = Rows([(3, table[:4]), (7, table[4:4]), (7, table[4:])])
    assert parted == Rows([(3, table)]) and parted.span == (3, 12)
    assert parted != Rows([(4, table)]) and parted != Rows([(3, table + 1)])
    assert torch.equal(parted.take(5, 9), table[2:6])
