"""`rheo data corrupt` and `repair`: what is made worse, what is found, and what stays as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rheo.envs.data.read import read
from rheo.envs.data.recording import Recording, Refused
from rheo.scripts.cli import main
from rheo.scripts.corrupting import named, tables
from rheo.scripts.repairing import flagged, two_groups

EPISODES, LENGTH = 40, 50
STEPS = EPISODES * LENGTH
TURN = 0.99 * np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Episodes of a linear system, of which an action tells the state and a reward both."""
    rng, episodes = np.random.default_rng(0), []
    for _ in range(EPISODES):
        z = [rng.normal(size=2)]
        for _ in range(LENGTH):
            z.append(TURN @ z[-1] + 0.05 * rng.normal(size=2))
        episodes.append(np.array(z))
    obs = np.concatenate([z[:-1] for z in episodes])
    path, last = tmp_path / "in.npz", np.arange(STEPS) % LENGTH == LENGTH - 1
    np.savez(
        path,
        observations=obs,
        next_observations=np.concatenate([z[1:] for z in episodes]),
        actions=np.clip(0.3 * obs, -1, 1),
        rewards=obs.sum(1),
        terminals=last & (np.arange(STEPS) < STEPS / 2),
        timeouts=last & (np.arange(STEPS) >= STEPS / 2),
    )
    return path


def parts(recording: Recording) -> dict[str, np.ndarray]:
    assert recording.reward is not None
    steps = len(recording.action)
    table = {"observations": recording.obs[:steps], "actions": recording.action}
    return table | {"rewards": recording.reward[:, None]}


def card(file: Path) -> dict[str, Any]:
    return json.loads(Path(f"{file}.card.json").read_text())


def run(verb: str, source: Path, out: Path, *words: str) -> dict[str, Any]:
    assert main(["data", verb, str(source), str(out), *words]) == 0
    return card(out)["corruption" if verb == "corrupt" else "repair"]


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "missing"])
def test_a_share_of_the_steps_is_corrupted_and_nothing_else(source, tmp_path, kind) -> None:
    out = tmp_path / "out.npz"
    words = ["--share", "0.4", "--kind", kind, "--parts", "rewards,observations", "--seed", "3"]
    words += [] if kind == "missing" else ["--scale", "0.5"]
    told = run("corrupt", source, out, *words)
    before, after = read(str(source)), read(str(out))
    mask = np.load(f"{out}.mask.npy")
    assert told["corrupted"] == 0.4 * STEPS and told["parts"] == ["observations", "rewards"]
    assert mask.shape == (STEPS, 2) and (mask.sum(0) == 0.4 * STEPS).all()
    old, new = parts(before), parts(after)
    for index, part in enumerate(told["parts"]):
        hit = mask[:, index]
        np.testing.assert_array_equal(old[part][~hit], new[part][~hit])
        noise = new[part][hit] - old[part][hit] * (part == "observations")
        noise = noise / (old[part].std(0) if part == "observations" else 30)
        if kind == "missing":
            assert (new[part][hit] == 0).all()
        elif kind == "uniform":
            assert 0.49 < np.abs(noise).max() <= 0.5001
            assert noise.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.1)
        else:
            assert noise.std() == pytest.approx(0.5, rel=0.1) and np.abs(noise).max() > 1
    np.testing.assert_array_equal(before.action, after.action)
    np.testing.assert_array_equal(before.obs[STEPS:], after.obs[STEPS:])  # behind last steps
    np.testing.assert_array_equal(before.terminated, after.terminated)


def test_actions_stay_in_their_box_and_what_was_cut_is_counted(source, tmp_path, capsys) -> None:
    told = run("corrupt", source, tmp_path / "out.npz", "--parts", "actions", "--scale", "9")
    after = read(str(tmp_path / "out.npz"))
    assert np.abs(after.action).max() == 1
    assert told["cut"] == (np.abs(after.action) == 1).sum() > 100
    assert f"{told['cut']:,} numbers of actions cut to [-1, 1]" in capsys.readouterr().out


def test_a_seed_corrupts_alike_and_another_otherwise(source, tmp_path) -> None:
    outs = [tmp_path / f"{name}.npz" for name in "abc"]
    for out, seed in zip(outs, "001", strict=True):
        run("corrupt", source, out, "--seed", seed)
    same, again, other = (read(str(out)).obs for out in outs)
    assert (same == again).all() and not (same == other).all()


def rmse(one: Recording, other: Recording, where: np.ndarray) -> float:
    return float(np.sqrt(np.square(one.obs[:STEPS] - other.obs[:STEPS])[where].mean()))


def test_a_repair_finds_what_is_corrupted_and_brings_it_back(source, tmp_path, capsys) -> None:
    """With nothing changed that is not flagged."""
    bad, good = tmp_path / "bad.npz", tmp_path / "good.npz"
    run("corrupt", source, bad, "--scale", "2")
    told = run("repair", bad, good, "--half", "2", "--updates", "120", "--level", "0.3")
    hit = np.load(f"{bad}.mask.npy")[:, 0]
    mask, scores = np.load(f"{good}.mask.npy"), np.load(f"{good}.scores.npy")
    truth, before, after = (read(str(path)) for path in (source, bad, good))
    score = scores[:, 0]
    assert (score[hit][:, None] > score[~hit]).mean() > 0.9
    flags = mask[:, 0]
    assert flags[hit].mean() > 0.6 and flags[~hit].mean() < 0.2
    assert rmse(after, truth, flags) < 0.5 * rmse(before, truth, flags)
    np.testing.assert_array_equal(after.obs[:STEPS][~flags], before.obs[:STEPS][~flags])
    np.testing.assert_array_equal(after.obs[STEPS:], before.obs[STEPS:])
    np.testing.assert_array_equal(after.action[~mask[:, 1]], before.action[~mask[:, 1]])
    np.testing.assert_array_equal(after.reward, before.reward)
    changed = told["parts"]["observations"]["changed"]
    assert told["parts"]["observations"]["flagged"] == flags.sum()
    assert changed == (after.obs[:STEPS] != before.obs[:STEPS]).sum() > flags.sum()
    out = capsys.readouterr().out
    assert f"observations: {flags.sum():,} of {STEPS:,} steps are flagged" in out
    assert f"{changed:,} numbers are changed" in out


def test_a_seed_repairs_alike_and_another_otherwise(source, tmp_path) -> None:
    outs = [tmp_path / f"{name}.npz" for name in "abc"]
    for out, seed in zip(outs, "001", strict=True):
        run("repair", source, out, "--seed", seed, "--share", "0.1", "--updates", "3")
    same, again, other = (parts(read(str(out))) for out in outs)
    for part in same:
        np.testing.assert_array_equal(same[part], again[part])
    assert not (same["observations"] == other["observations"]).all()


def test_parts_and_share_say_what_may_be_replaced(source, tmp_path) -> None:
    """Flagged are then the largest scores, however few updates there were."""
    out = tmp_path / "out.hdf5"
    words = "--parts", "rewards", "--share", "0.25", "--updates", "3", "--half", "1"
    told = run("repair", source, out, *words)
    mask, scores = np.load(f"{out}.mask.npy"), np.load(f"{out}.scores.npy")
    assert list(told["parts"]) == ["rewards"] and mask.shape == scores.shape == (STEPS, 1)
    assert mask.sum() == told["parts"]["rewards"]["flagged"] == STEPS / 4
    assert scores[mask].min() >= scores[~mask].max()
    before, after = read(str(source)), read(str(out))
    np.testing.assert_array_equal(before.obs, after.obs)
    np.testing.assert_array_equal(before.action, after.action)
    same = parts(before)["rewards"] == parts(after)["rewards"]
    assert same[~mask].all() and not same[mask].all()


def test_where_nothing_stands_out_nothing_is_changed(source, tmp_path, capsys) -> None:
    out = tmp_path / "out.npz"
    told = run("repair", source, out, "--half", "1", "--updates", "40", "--parts", "observations")
    assert told["parts"]["observations"] == {"apart": None, "flagged": 0, "changed": 0}
    assert list(told["losses"]) == ["detector"]
    text = "does not single out some of the steps, so nothing is flagged (--share"
    assert text in capsys.readouterr().out
    np.testing.assert_array_equal(read(str(source)).obs, read(str(out)).obs)


def test_two_groups_of_scores_are_parted_where_they_meet() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(1, 0.1, 7000), rng.normal(2, 0.2, 3000)
    groups = two_groups(np.concatenate([low, high]) ** 6)
    assert groups is not None
    assert groups.apart == pytest.approx(1 / np.sqrt((0.1**2 + 0.2**2) / 2), rel=0.05)

    def excess(x: float) -> float:
        """Of the log density of the one group over the other's, each with its weight."""
        one = np.log(0.7 / 0.1) - ((x - 1) / 0.1) ** 2 / 2
        return one - np.log(0.3 / 0.2) + ((x - 2) / 0.2) ** 2 / 2

    limit = groups.limit ** (1 / 6)
    assert excess(limit - 0.03) > 0 > excess(limit + 0.03)
    assert two_groups(np.concatenate([low[:1500], high]) ** 6) is None  # what is usual is not wrong
    for alone in (low**6, rng.chisquare(1, 9000), rng.chisquare(11, 9000), np.ones(50)):
        assert two_groups(alone) is None
        assert not flagged(alone, None)[0].any()


REFUSED = [
    ("corrupt", ["--share", "0"], "share=0: a share above 0, at most 1"),
    ("corrupt", ["--share", "0.0001"], "--share 0.0001 of 2,000 steps is none"),
    ("corrupt", ["--scale", "-1"], "scale=-1: a number is needed that is not negative"),
    ("corrupt", ["--kind", "missing", "--scale", "1"], "scale=1: what is missing has no noise"),
    ("corrupt", ["--kind", "salt"], "kind=salt: not known; there are: gaussian, missing, uniform"),
    ("corrupt", ["--parts", "states"], "parts=states: not known; there are: actions, observations"),
    ("repair", ["--parts", ""], "parts=: not known; there are: actions, observations, rewards"),
    ("repair", ["--share", "1"], "share=1: a number between 0 and 1 is needed"),
    ("repair", ["--level", "1"], "level=1: a number between 0 and 1 is needed"),
    ("repair", ["--updates", "0"], "updates=0: a positive whole number is needed"),
    ("repair", ["--half", "0.5"], "half=0.5: a positive whole number is needed"),
    ("repair", ["--top", "0.5"], "unknown flag --top"),
]


@pytest.mark.parametrize(("verb", "words", "told"), REFUSED)
def test_bad_words_are_refused_and_nothing_is_written(
    source, tmp_path, capsys, verb, words, told
) -> None:
    assert main(["data", verb, str(source), str(tmp_path / "out.npz"), *words]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("verb", ["corrupt", "repair"])
def test_rewards_are_asked_for_only_where_there_are_some(source, tmp_path, capsys, verb) -> None:
    bare, out = tmp_path / "bare.npz", tmp_path / "out.npz"
    with np.load(source) as table:
        np.savez(bare, **{key: table[key] for key in table if key != "rewards"})
    assert main(["data", verb, str(bare), str(out), "--parts", "rewards"]) == 2
    assert "rewards: no rewards; --parts names others" in capsys.readouterr().err
    words = ["--updates", "2", "--half", "1"] if verb == "repair" else []
    assert main(["data", verb, str(bare), str(out), *words]) == 0
    assert main(["data", verb, str(bare), str(out), *words]) == 2
    assert f"{out} exists; remove it" in capsys.readouterr().err


def test_a_signal_ends_a_repair_and_nothing_is_written(source, tmp_path, capsys, signalled) -> None:
    out = tmp_path / "out.npz"
    assert main(["data", "repair", str(source), str(out)]) == 75
    assert "stopped by SIGTERM; nothing is written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.fixture
def signalled(monkeypatch) -> None:
    """SIGTERM comes with the first update."""
    import os
    import signal

    from rheo.algos import recovery

    fit = recovery.fit

    def begun(*how: Any, **words: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return fit(*how, **words)

    monkeypatch.setattr(recovery, "fit", begun)


def test_images_are_left_alone(source) -> None:
    """What is observed beside them is looked at; where there is nothing else it is refused."""
    recording = read(str(source))
    about = recording.about | {"obs_images": {"eye": (1, 1, 1)}}
    seen = recording._replace(about=about)
    assert tables(seen)["observations"].shape == (STEPS, 1)
    bare = seen._replace(obs=recording.obs[:, :1])
    assert list(tables(bare)) == ["actions", "rewards"]
    with pytest.raises(Refused, match="observations: images alone; --parts names others"):
        named(bare, ["observations"])
