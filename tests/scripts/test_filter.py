"""`rheo data filter`: of a file of known episodes those that are asked for, bit for bit."""

from pathlib import Path

import numpy as np
import pytest

from rheo.envs.data.read import read
from rheo.envs.data.recording import Recording
from rheo.scripts.cli import main

LENGTHS = np.array([6, 4, 8, 5, 3])
RETURNS = [6.0, 2.0, 4.0, 10.0, 4.0]
ENDED = [True, False, True, False, True]  # by the task
SHAKE = [0.4, 0.0, 0.1, 0.2, 0.9]  # of actions that alternate; the last one is too short to tell
FIELDS = ("obs", "action", "reward", "terminated")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five episodes of known returns, ends and smoothness."""
    steps, ends = int(LENGTHS.sum()), np.cumsum(LENGTHS)
    rng = np.random.default_rng(0)
    sign = np.concatenate([(-1.0) ** np.arange(n) for n in LENGTHS])
    last = np.isin(np.arange(steps), ends - 1)
    task = np.repeat(ENDED, LENGTHS)
    obs = rng.normal(size=(steps, 4)).astype("f4")
    path = tmp_path / "in.npz"
    np.savez(
        path,
        observations=obs,
        actions=(sign * np.repeat(SHAKE, LENGTHS))[:, None] * np.ones(2),
        rewards=np.repeat(RETURNS, LENGTHS) * last,
        terminals=last & task,
        timeouts=last & ~task,
        next_observations=np.concatenate([obs[1:], obs[:1]]),
    )
    return path


def episodes(recording: Recording) -> list[tuple[np.ndarray, ...]]:
    """The arrays of every episode, with what followed it."""
    found = []
    for start, end, after in zip(
        recording.starts, recording.ends, recording.successor, strict=True
    ):
        assert recording.reward is not None and after >= 0
        found.append(
            (
                *(getattr(recording, field)[start:end] for field in FIELDS),
                recording.obs[after],
            )
        )
    return found


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--ended"], [0, 2, 4]),
        (["--ended=false"], [1, 3]),
        (["--least", "4"], [0, 2, 3, 4]),
        (["--top", "0.4"], [0, 3]),
        (["--top", "0.5"], [0, 2, 3]),  # three of five: rounded up, of equal ones the earlier
        (["--smooth", "0.6"], [1, 2, 4]),
        (["--smooth", "0.8"], [1, 2, 3, 4]),
        (["--ended", "--top", "0.5"], [0, 2]),
        (["--least", "4", "--top", "0.5", "--smooth", "0.5"], [3]),  # 0 and 3 are left before
    ],
)
def test_what_is_kept_is_what_was_asked_for_bit_for_bit(source, tmp_path, words, wanted):
    out = tmp_path / "out.npz"
    before = episodes(read(str(source)))
    assert main(["data", "filter", str(source), str(out), *words]) == 0
    after = read(str(out))
    assert len(after.ends) == len(wanted)
    for kept, index in zip(episodes(after), wanted, strict=True):
        for one, other in zip(kept, before[index], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("words", [["--ended"], ["--least", "4"], ["--top", "1", "--smooth", "1"]])
def test_what_passes_once_passes_again(source, tmp_path, words):
    once, twice = tmp_path / "once.hdf5", tmp_path / "twice.hdf5"
    assert main(["data", "filter", str(source), str(once), *words]) == 0
    assert main(["data", "filter", str(once), str(twice), *words]) == 0
    first, second = read(str(once)), read(str(twice))
    for field in (*FIELDS, "ends", "successor"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_every_rule_says_which_episodes_it_leaves_out(source, tmp_path, capsys):
    out = tmp_path / "out.npz"
    assert main(["data", "filter", str(source), str(out), "--least", "4", "--smooth", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "--least 4 leaves out 1 (1) of 5 episodes" in told
    assert "--smooth 0.5 leaves out 2 (0, 3) of 4 episodes" in told
    assert f"{out}: 11 steps in 2 episodes" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing says which episodes are wanted: give one of --ended, --least, --top"),
        (["--least", "11"], "--least 11: none of 5 episodes is left"),
        (["--top", "0"], "top=0: a share above 0, at most 1"),
        (["--top", "nan"], "top=nan: a number is needed"),
        (["--smooth", "1.5"], "smooth=1.5: a share above 0"),
        (["--ended=maybe"], "ended=maybe: must be true or false"),
        (["--best", "0.5"], "unknown flag --best"),
    ],
)
def test_bad_words_are_refused_and_nothing_is_written(source, tmp_path, capsys, words, told):
    assert main(["data", "filter", str(source), str(tmp_path / "out.npz"), *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_a_return_is_asked_for_only_where_there_are_rewards(source, tmp_path, capsys):
    bare = tmp_path / "bare.npz"
    with np.load(source) as table:
        np.savez(bare, **{key: table[key] for key in table if key != "rewards"})
    out = str(tmp_path / "out.npz")
    assert main(["data", "filter", str(bare), out, "--top", "0.5"]) == 2
    assert "rewards: no rewards, so that no return is known" in capsys.readouterr().err
    assert main(["data", "filter", str(bare), out, "--ended"]) == 0
    assert len(read(out).ends) == 3


def test_a_flag_with_a_value_is_taken_by_its_value(source, capsys):
    """`--big=false` was read as true."""
    from rheo.scripts.config.data import data

    assert data(["info", str(source), "--big=false"])[2]["big"] is False
    assert data(["info", str(source), "--big"])[2]["big"] is True
