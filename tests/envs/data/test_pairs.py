"""Files of pairs: what is written is read, and what is wrong is refused by file, key and row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheo.envs.data.pairs import pairs_of, read_pairs, write_pairs
from rheo.envs.data.read import read
from rheo.errors import EnvError

SCORES = np.array([[1, 3, 2], [5, 5, 5], [0, -1, 0], [2, 2, 7]], np.float32)


def branched() -> tuple[np.ndarray, np.ndarray]:
    """Four observations, and three chunks at each."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(4, 5)).astype(np.float32)
    return obs, rng.uniform(-1, 1, (4, 3, 2, 1)).astype(np.float32)


def labels(**changed: Any) -> dict[str, Any]:
    """A file of human labels."""
    obs, chunks = branched()
    return {"observations": obs, "chosen": chunks[:, 0], "rejected": chunks[:, 1]} | changed


def test_best_and_worst_are_paired_and_ties_left_out_and_counted():
    obs, chunks = branched()
    pairs = pairs_of(obs, chunks, SCORES, {"ties": 2, "env_id": "Hopper-v5"})
    assert pairs.about == {"ties": 3, "env_id": "Hopper-v5"}
    assert np.array_equal(pairs.obs, obs[[0, 2, 3]])
    assert np.array_equal(pairs.chosen, chunks[[0, 2, 3], [1, 0, 2]])
    assert np.array_equal(pairs.rejected, chunks[[0, 2, 3], [0, 1, 0]])
    assert pairs.scores is not None and np.array_equal(pairs.scores, SCORES[[0, 2, 3]])


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path):
    about = {"discount": 0.97, "steps": 50, "deployment": {"policy.eta": 0.5}, "dt": 0.008}
    pairs = pairs_of(*branched(), SCORES, about)
    write_pairs(pairs, tmp_path / "a.npz", step=np.arange(3))
    again = read_pairs(tmp_path / "a.npz")
    assert again.arrays.keys() == pairs.arrays.keys()
    for key, array in again.arrays.items():
        assert array.dtype == np.float32 and np.array_equal(array, pairs.arrays[key])
    assert {key: again.about[key] for key in about} == about
    assert again.about["ties"] == 1


def test_labels_need_no_returns(tmp_path: Path):
    np.savez(tmp_path / "labels.npz", **labels(), discount=0.9)
    pairs = read_pairs(tmp_path / "labels.npz")
    assert pairs.chunks is None and pairs.scores is None and len(pairs.obs) == 4
    assert pairs.about["discount"] == 0.9


def test_returns_alone_make_pairs(tmp_path: Path):
    obs, chunks = branched()
    np.savez(tmp_path / "b.npz", observations=obs, chunks=chunks, returns=SCORES)
    pairs, expected = read_pairs(tmp_path / "b.npz"), pairs_of(obs, chunks, SCORES, {})
    assert np.array_equal(pairs.chosen, expected.chosen) and pairs.about["ties"] == 1


def test_rounding_at_the_bounds_is_clipped(tmp_path: Path):
    chosen = labels()["chosen"].astype(np.float64)
    chosen[0] = 1 + 5e-7
    np.savez(tmp_path / "c.npz", **labels(chosen=chosen))
    assert read_pairs(tmp_path / "c.npz").chosen.max() == 1


def spoiled(key: str, value: float) -> dict[str, Any]:
    """Labels with one number changed, at row 2."""
    array = labels()[key].copy()
    array[(2, *(0,) * (array.ndim - 1))] = value
    return labels(**{key: array})


def without(*keys: str) -> dict[str, Any]:
    return {key: array for key, array in labels().items() if key not in keys}


def tried(**changed: Any) -> dict[str, Any]:
    obs, chunks = branched()
    rows = [0, 2, 3]
    pairs = pairs_of(obs, chunks, SCORES, {}).arrays
    return {**pairs, "observations": obs[rows]} | changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("rejected"), "rejected: no key 'rejected'; it holds chosen, observations"),
        (without("observations"), "observations: no key 'observations'"),
        (without("chosen", "rejected"), "chosen: no key 'chosen'"),
        (labels(returns=SCORES), "chunks: no key 'chunks'"),
        (labels(chosen=branched()[1][:3, 0]), "chosen: has shape (3, 2, 1), so S is 3, but 4 in"),
        (labels(rejected=branched()[1][:, 0, :1]), "so T is 1, but 2 in chosen"),
        (labels(observations=branched()[1]), "observations: has shape (4, 3, 2, 1)"),
        (labels(chosen=np.full((4, 2, 1), "a")), "chosen: has shape (4, 2, 1) and type <U1"),
        (labels(chosen=np.empty((4, 0, 1))), "at least one of each"),
        (spoiled("observations", np.nan), "observations, value nan: row 2, at [2, 0]"),
        (spoiled("rejected", np.inf), "rejected, value inf: row 2, at [2, 0, 0]: is not finite"),
        (spoiled("chosen", 1.5), "chosen, value 1.5: row 2, at [2, 0, 0]: is outside of [-1, 1]"),
        (labels(discount=2.0), "discount: is 2.0, expected a number from 0 to 1"),
        (tried(chunks=branched()[1][[0, 2, 3], :1], returns=SCORES[:3, :1]), "two make a pair"),
        (tried(returns=-SCORES[[0, 2, 3]]), "chosen: row 0 is none of the chunks with the largest"),
        (
            {k: v for k, v in tried(returns=SCORES[:3] * 0).items() if k not in labels()}
            | {"observations": branched()[0][:3]},
            "returns: the chunks of every row have one return",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, content: Any, message: str):
    file = tmp_path / "wrong.npz"
    np.savez(file, **content)
    with pytest.raises(EnvError) as caught:
        read_pairs(file)
    assert str(caught.value).startswith(f"data={file}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_and_episodes_are_told_apart(tmp_path: Path):
    with pytest.raises(EnvError, match="no such file"):
        read_pairs(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "labels.npz", **labels())
    with pytest.raises(EnvError, match="chosen and rejected, which are no episodes"):
        read(str(tmp_path / "labels.npz"))


def test_a_bomb_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rheo.envs.data.bulk.FREE", 10**6)
    many = np.zeros((130, 100, 100), np.int8)
    content = labels(chosen=many, rejected=many, observations=np.zeros((len(many), 1)))
    np.savez_compressed(tmp_path / "bomb.npz", **content)
    with pytest.raises(EnvError, match="would become"):
        read_pairs(tmp_path / "bomb.npz")
