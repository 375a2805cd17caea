"""Batches of recorded pairs: which rows, how they are drawn, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rheo.envs.chunk import ChunkEnv
from rheo.envs.compared import Comparisons
from rheo.envs.suites import make
from rheo.errors import EnvError


def branches(rows: int = 30) -> dict[str, Any]:
    """Chunks whose returns are their first action; the observation tells the row."""
    rng = np.random.default_rng(0)
    chunks = rng.uniform(-1, 1, (rows, 3, 2, 1)).astype(np.float32)
    obs = np.arange(rows)[:, None] + np.zeros((rows, 4))
    return {"observations": obs, "chunks": chunks, "returns": chunks[:, :, 0, 0]}


@pytest.fixture
def source(tmp_path: Path):
    """A source of a file with these arrays, `source(arrays, **settings)`."""

    def make(content: dict[str, Any], seed: int = 0, horizon: int = 2, **changes: Any):
        path = str(tmp_path / "pairs.npz")
        np.savez(path, **content)
        how: dict[str, Any] = {
            **{"batch_size": 16, "holdout": 0.2, "chunks": "ends", "obs_steps": 1, "execute": 2},
            **{"big": False, "path": path},
        }
        generator, env = torch.Generator().manual_seed(seed), changes.pop("env", None)
        return Comparisons(generator, horizon, env, **(how | changes))

    return make


def rows_of(batch: Any) -> list[int]:
    return batch.obs[:, 0].long().tolist()


def test_a_batch_holds_best_and_worst_of_its_rows(source):
    content = branches()
    batch = source(content).next(None)
    assert batch.obs.shape == (16, 4) and batch.action.shape == (16, 2, 2, 1)
    for row, action, score in zip(rows_of(batch), batch.action, batch.score, strict=True):
        order = content["returns"][row].argsort()
        assert np.array_equal(action.numpy(), content["chunks"][row][order[[-1, 0]]])
        assert score.tolist() == content["returns"][row][order[[-1, 0]]].tolist()


def test_all_chunks_come_where_they_are_asked_for(source):
    content = branches()
    batch = source(content, chunks="all").next(None)
    for row, action, score in zip(rows_of(batch), batch.action, batch.score, strict=True):
        assert np.array_equal(action.numpy(), content["chunks"][row])
        assert score.tolist() == content["returns"][row].tolist()


def test_of_labels_the_winner_comes_first(source):
    content = branches()
    labels = {"observations": content["observations"], "chosen": content["chunks"][:, 0],
              "rejected": content["chunks"][:, 1]}  # fmt: skip
    batch = source(labels).next(None)
    assert batch.score is None
    for row, action in zip(rows_of(batch), batch.action, strict=True):
        assert np.array_equal(action.numpy(), content["chunks"][row, :2])


def test_rows_that_teach_nothing_are_left_out_and_told(source, caplog):
    """Equal returns, returns whose difference is no number, and chunks that are executed alike."""
    content = branches()
    content["returns"] = content["returns"].copy()
    content["returns"][3] = 1.5
    content["returns"][7, :2] = 3e38, -3e38
    content["chunks"][9, :, 0] = 0.5  # of two actions the first one alone is executed
    found = source(content, holdout=0.0, execute=1)
    assert len(found.train.obs) == 27
    assert not {3, 7, 9} & {*found.train.obs[:, 0].long().tolist()}
    assert "2 of 29 observations have chunks of one return, or one chunk" in caplog.text
    assert "1 of 30 observations have chunks of one return: they are left out" in caplog.text
    content["returns"][:] = content["returns"][:, :1]
    content |= {"chosen": content["chunks"][:, 0], "rejected": content["chunks"][:, 1]}
    with pytest.raises(ValueError, match="30 of 30 observations .*: none is better"):
        source(content)


def test_who_validates_is_fixed_and_never_learned_from(source):
    one, two = (source(branches(), seed) for seed in (0, 1))
    held = rows_of(one.held_out())
    assert held == rows_of(two.held_out()) and len(held) == 6
    assert not {*held} & {row for _ in range(20) for row in rows_of(one.next(None))}
    assert rows_of(one.next(None)) != rows_of(two.next(None))
    assert source(branches(), holdout=0.0).held_out() is None


def test_it_goes_on_exactly_and_only_with_the_same_file(source):
    first = source(branches())
    for _ in range(3):
        first.next(None)
    state = first.state_dict()
    second = source(branches(), seed=9)
    second.load_state_dict(state)
    assert second.progress == 3
    assert all(rows_of(first.next(None)) == rows_of(second.next(None)) for _ in range(3))
    content = branches()
    content["returns"] = content["returns"] + 1
    with pytest.raises(EnvError, match="content changed"):
        source(content).load_state_dict(state)


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        ({}, {"horizon": 3}, "its chunks are of 2 actions, and the policy plans horizon=3"),
        ({"execute": 1}, {}, "1 actions of a chunk were executed, .* set env.execute=1"),
        ({}, {"holdout": 1.0}, "data.holdout=1.0 must lie in"),
        ({"returns": np.nan}, {}, "is not finite; mend it, or leave its row out"),
    ],
)
def test_what_does_not_fit_is_refused(source, more, changes, message):
    content = branches()
    bad = more.pop("returns", None)
    if bad is not None:
        content["returns"] = content["returns"].copy()
        content["returns"][4, 1] = bad
    with pytest.raises(ValueError, match=message):
        source({**content, **more}, **changes)


def test_all_chunks_of_labels_are_refused(source):
    content = branches()
    labels = {"observations": content["observations"], "chosen": content["chunks"][:, 0],
              "rejected": content["chunks"][:, 1]}  # fmt: skip
    with pytest.raises(ValueError, match="data.chunks=all: .* holds labels alone"):
        source(labels, chunks="all")


def test_pairs_of_another_environment_are_told(source, caplog):
    env = ChunkEnv(make("InvertedPendulum-v5", 1), execute=2, obs_steps=1, gamma=0.99)
    source(branches() | {"env_id": "Hopper-v5"}, env=env)
    assert "tried in Hopper-v5, and the run is in InvertedPendulum-v5" in caplog.text
