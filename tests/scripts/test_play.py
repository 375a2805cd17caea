"""`rheo play`: films of a run's evaluation."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rheo.envs import views
from rheo.scripts import films, play
from rheo.scripts.cli import main
from rheo.scripts.config.playing import play as asked
from rheo.scripts.config.top import EVAL_SEED
from rheo.scripts.evaluate import evaluate_folder
from rheo.scripts.films import Caption
from rheo.scripts.store.run import Run

pytestmark = pytest.mark.usefixtures("drawing")

CHUNKS = ("horizon=4", "env.execute=3", "env.num_envs=2", "source.warmup=20")


@pytest.fixture
def run(tiny, tmp_path: Path) -> Path:
    """RFM in InvertedPendulum, in chunks."""
    assert main(["train", *tiny("rfm", "a", "env=inverted_pendulum", *CHUNKS)]) == 0
    return tmp_path / "runs" / "a"


def test_a_film_shows_the_first_episodes_of_the_evaluation(run: Path, capsys) -> None:
    assert main(["play", "a", "out=a.gif", "episodes=2", "size=64", "fps=25"]) == 0
    evaluation = json.loads(
        Path(evaluate_folder(Run.open("a"), 2, seed=EVAL_SEED)["file"]).read_text()
    )
    theirs = [(row["ret"], row["length"]) for row in evaluation["episodes"]]
    assert f"a: return {theirs[0][0]:.1f}, {theirs[1][0]:.1f}" in capsys.readouterr().out
    with Image.open("a.gif") as film:
        assert film.size == (86, 64)
        frames = getattr(film, "n_frames", 1)
    shown = play.played("a", asked(["a", "episodes=2", "size=64", "fps=25"]))
    assert [(row.ret, row.length) for row in shown.episodes] == theirs
    assert len({length for _, length in theirs}) > 1
    assert frames == sum(map(len, shown.frames)) and len(shown.frames) == 2
    for (ret, length), film in zip(theirs, shown.frames, strict=True):  # 0.04 s a step, 25 a second
        assert len(film) == length + 1 and film[-1][1].ret == pytest.approx(ret)


def test_what_stands_still_takes_no_room_in_a_film(tmp_path: Path) -> None:
    still = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    frames = []
    for k in range(20):
        frames.append(still.copy())
        frames[-1][:4, k : k + 4] = 255
    films.write(frames[:1], tmp_path / "one.gif", 25)
    films.write(frames, tmp_path / "film.gif", 25)
    one, film = ((tmp_path / name).stat().st_size for name in ("one.gif", "film.gif"))
    assert film < 2 * one
    with Image.open(tmp_path / "film.gif") as shown:
        shown.seek(19)
        assert np.asarray(shown.convert("RGB"))[2, 20:22].min() > 200


def test_runs_are_shown_side_by_side_with_what_their_critics_expect(run: Path, tiny) -> None:
    words = tiny("sac", "b", "env=inverted_pendulum", "source.warmup=20")
    assert main(["train", *words]) == 0
    assert main(["play", "a", "b", "out=ab.gif", "size=48"]) == 0
    with Image.open("ab.gif") as film:
        assert film.size == (128, 48)
    (frames, *_) = play.played("a", asked(["a", "size=48"])).frames
    values = [caption.q for _, caption in frames[1:]]
    assert all(q is not None for q in values) and len(set(values)) > 1
    used = [caption.used for _, caption in frames[1:-1]]
    assert used == [1 + k % 3 for k in range(len(used))] and len(used) > 3
    assert frames[1][1].steps == 3


def test_what_is_drawn_changes_with_what_happens() -> None:
    blank = np.zeros((120, 160, 3), np.uint8)
    lines = Caption(seconds=1.5, ret=3.25, q=7.0, solved=True).lines("x")
    assert lines == ["x", "1.50 s   return 3.2   Q 7.0   solved"]
    early, late = (films.captioned(blank, "x", Caption(steps=4, used=n)) for n in (1, 3))
    bars = [(image[-2].min(1) == 255).mean() for image in (early, late)]
    assert 0.2 < bars[0] < 0.25 and 0.65 < bars[1] < 0.75
    assert (films.captioned(blank, "x", Caption())[-2] == 0).all()  # a plan of one step has no bar
    short, long = [blank + 100], [blank, blank]
    first, last = films.side_by_side([short, long])
    assert first.shape == (120, 320, 3) and first[0, 0, 0] == 100 and last[0, 0, 0] == 50


def test_an_mp4_is_written_where_its_package_is(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio_ffmpeg")
    frames = [np.full((48, 65, 3), 20 * i, np.uint8) for i in range(10)]
    films.write(frames, tmp_path / "a.mp4", 25)
    found = imageio.count_frames_and_secs(str(tmp_path / "a.mp4"))
    assert found == (10, pytest.approx(0.4, abs=0.05))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "out=a.avi"], "out=a.avi: a film is a .gif or .mp4"),
        (["a", "camera=nowhere"], "there is no 'nowhere'"),
        (["nothing"], "no run at"),
        (["a", "window=true", "out=a.gif"], "window=true: is of one run, and writes no out="),
        (["a", "sise=3"], "unknown option 'sise'; did you mean 'size'?"),
        ([], "usage: rheo play"),
    ],
)
def test_what_cannot_be_played_is_answered(
    run: Path, capsys, words: list[str], message: str
) -> None:
    capsys.readouterr()
    assert main(["play", *words]) == 2
    assert message in capsys.readouterr().err


def test_what_this_machine_lacks_is_named(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["play", "a", "out=a.mp4", "size=32"]) == 2
    assert (
        "an .mp4 needs imageio and its ffmpeg: pip install 'rheo-rl[video]'"
        in capsys.readouterr().err
    )
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["play", "a", "window=true"]) == 2
    assert "window=true: no display here (DISPLAY is not set)" in capsys.readouterr().err
    assert not list(Path().glob("*.mp4")) and not list(Path().glob(".*tmp"))


def test_a_run_without_an_environment_has_nothing_to_show(tiny, capsys) -> None:
    assert main(["train", *tiny("bc", "c")]) == 0
    assert main(["play", "c"]) == 2
    assert "learned from data without an environment" in capsys.readouterr().err


def test_a_step_s_time_is_the_environment_s_own() -> None:
    import gymnasium

    assert views.step_seconds(gymnasium.make("Hopper-v5")) == pytest.approx(0.008)
    assert views.step_seconds(gymnasium.make("Pendulum-v1")) == pytest.approx(0.05)
