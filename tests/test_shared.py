"""Numbers that meet in shared memory; `tests/scripts/test_ranks.py` has it between real ranks."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rheo import shared
from rheo.shared import PIECE, Table, nameless

pytestmark = pytest.mark.skipif(shared.lacking() is not None, reason=str(shared.lacking()))


@pytest.fixture
def other() -> Iterator[subprocess.Popen]:
    """A process that lives."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def tables(size: int, pid: int, patience: float = 60.0) -> list[Table]:
    """The tables of so many processes, all in this one; pid: the process that is watched."""
    handle = nameless(Table.bytes(size))
    pids = [{other: pid for other in range(size) if other != rank} for rank in range(size)]
    return [Table(rank, size, os.dup(handle), own, patience) for rank, own in enumerate(pids)]


def folded(team: list[Table], given: list[Tensor], largest: bool = False) -> list[Tensor]:
    """What each of them has after an exchange."""
    found = [each.clone() for each in given]
    threads = [
        threading.Thread(target=table.fold_, args=(mine, largest))
        for table, mine in zip(team, found, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("size", [2, 3])
def test_all_have_the_sum_in_the_order_of_ranks_of_every_kind_and_size(size, other):
    team, generator = tables(size, other.pid), torch.Generator().manual_seed(0)
    for count in (1, 7, PIECE // 4 - 1, PIECE // 4 + 3, PIECE // 2 + 1):
        given = [torch.randn(count, generator=generator) for _ in range(size)]
        expected = given[0] + given[1]
        for more in given[2:]:
            expected = expected + more
        for found in folded(team, given):
            assert torch.equal(found, expected)
    for found in folded(team, [torch.tensor(2**40 + rank) for rank in range(size)]):
        assert found.shape == () and int(found) == size * 2**40 + size * (size - 1) // 2


def test_all_have_the_largest_of_every_element_and_see_what_is_not_a_number(other):
    given = [torch.tensor([[1.0, -5.0], [torch.nan, 0.0]]), torch.tensor([[0.5, 7.0], [1.0, 0.0]])]
    one, two = folded(tables(2, other.pid), given, largest=True)
    assert torch.equal(one.nan_to_num(9), torch.tensor([[1.0, 7.0], [9.0, 0.0]]))
    assert torch.equal(one.nan_to_num(9), two.nan_to_num(9))


def test_who_is_ahead_does_not_write_over_what_others_still_read(other):
    """One of them is slow at times, in all orders."""
    team, wrong = tables(2, other.pid), []

    def many(table: Table) -> None:
        generator = torch.Generator().manual_seed(table.rank)
        for turn in range(300):
            if float(torch.rand((), generator=generator)) < 0.05:
                time.sleep(0.002)
            found = torch.full((5000,), float(turn + table.rank))
            table.fold_(found)
            if not bool((found == 2 * turn + 1).all()):
                wrong.append(turn)

    threads = [threading.Thread(target=many, args=(table,)) for table in team]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert team[0].turn == 300 and wrong == []


def leaves(table: Table, process: subprocess.Popen) -> None:
    table.leave()


def is_killed(table: Table, process: subprocess.Popen) -> None:
    process.kill()


def sleeps(table: Table, process: subprocess.Popen) -> None:
    pass


@pytest.mark.parametrize(
    ("ends", "said"),
    [(leaves, "is gone"), (is_killed, "is gone"), (sleeps, "does not answer for 1 s")],
)
def test_who_waits_for_one_that_does_not_come_is_told(
    ends: Callable[[Table, subprocess.Popen], None], said, other
):
    one, two = tables(2, other.pid, patience=1.0)
    folded([one, two], [torch.ones(2), torch.ones(2)])
    timer = threading.Timer(0.2, ends, (two, other))
    timer.start()
    with pytest.raises(RuntimeError, match=f"rank 1 {said}"):
        one.fold_(torch.ones(2))
    timer.join()


def test_what_one_laid_down_before_it_left_is_still_read(other):
    one, two = tables(2, other.pid)
    thread = threading.Thread(target=two.fold_, args=(torch.ones(2),))
    thread.start()
    time.sleep(0.2)
    assert two.turn == 1 and one.counters[8] == 1  # laid down, and waiting
    other.kill()
    found = torch.ones(2)
    one.fold_(found)
    thread.join()
    assert found.tolist() == [2.0, 2.0]


def test_another_file_of_that_name_is_not_taken():
    handle, words = shared._made(2)
    taken = shared._found(2, words)
    os.close(taken)
    path, _, signature = words.partition(" ")
    with pytest.raises(OSError, match="another file"):
        shared._found(2, f"{path} {signature[::-1]}")
    os.close(handle)
    with pytest.raises(OSError):
        shared._found(2, "")
