"""Which word names a run, and values that are taken as they stand."""

import os
from pathlib import Path

import numpy as np
import pytest

from rheo.envs.paths import absolute, exists, expanded
from rheo.errors import RheoError, command
from rheo.scripts.cli import main
from rheo.scripts.config.compose import compose
from rheo.scripts.config.top import OPTIONS
from rheo.scripts.config.words import divide, flags, literal, one_run, stem_of


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("lr=0.1", "steps=10", "plain"):
        Path("runs", name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "runs", "options"),
    [
        (["plain", "episodes=3"], ["plain"], ["episodes=3"]),
        (["episodes=3", "plain"], ["plain"], ["episodes=3"]),
        (["lr=0.1"], ["lr=0.1"], []),
        (["runs/lr=0.1", "steps=5"], ["runs/lr=0.1"], ["steps=5"]),
        (["elsewhere=3", "steps=5"], ["elsewhere=3"], ["steps=5"]),  # no such run: said so
        (["steps=10"], ["steps=10"], []),  # a folder, and nothing else names a run
        (["steps=10", "steps=20"], ["steps=10"], ["steps=20"]),
        (["plain", "steps=10"], ["plain"], ["steps=10"]),
        (["plain", "episode=3"], ["plain"], ["episode=3"]),  # the verb names the nearest key
        (["--config-dir", "lab", "plain", "algo.lr=1"], ["plain"], ["algo.lr=1"]),
        (["plain", "steer=best", "steer.n=4"], ["plain"], ["steer=best", "steer.n=4"]),
        (["episodes=3"], [], ["episodes=3"]),
        (["a", "b"], ["a", "b"], []),
    ],
)
def test_a_word_names_a_run_or_is_an_option(
    argv: list[str], runs: list[str], options: list[str]
) -> None:
    words = divide(argv, OPTIONS)
    assert (words.runs, words.options) == (runs, options)
    assert words.flagged == (argv[:2] if "--config-dir" in argv else [])


def test_one_run_is_asked_for() -> None:
    assert one_run(divide(["plain"], OPTIONS), "usage: x") == "plain"
    with pytest.raises(RheoError, match=r"there are a, b\nusage: x"):
        one_run(divide(["a", "b"], OPTIONS), "usage: x")
    with pytest.raises(RheoError, match="^usage: x"):
        one_run(divide(["steps=3"], OPTIONS), "usage: x")


def test_flags_are_read_to_the_end() -> None:
    errors: list[str] = []
    assert flags(["-m", "--config-dir=a", "x=1", "--foo"], errors) == (["a"], ["x=1"])
    assert len(errors) == 2 and "rheo sweep seed=0,1,2" in errors[0] and "--foo" in errors[1]
    with pytest.raises(RheoError, match="--multirun: `rheo sweep"):
        flags(["--multirun"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=0.1", "lr=0.1"),
        ("a # [b] {c} $d", "a # [b] {c} $d"),
        ("it's", "it's"),
        ("Zürich", "Zürich"),
        ("7", "7"),
        ("true", "true"),
        ("null", None),
        ('"lr=0.1"', "lr=0.1"),
        ("'it\\'s'", "it's"),
        ("[a,b]", ["a", "b"]),
        ("[ a.npz , 'b,c.npz' , it's ]", ["a.npz", "b,c.npz", "it's"]),
        ("[a]", "a"),
    ],
)
def test_the_value_of_data_is_taken_as_it_stands(text: str, value: object) -> None:
    assert literal("data", text) == value


@pytest.mark.parametrize("text", ["null", '"a"', "[a,b]"])
def test_what_is_there_under_the_very_text_is_meant(text: str) -> None:
    Path(text).touch()
    assert literal("data", text) == text


def test_only_data_are_a_list() -> None:
    assert literal("name", "[a,b]") == "[a,b]"
    assert stem_of("x/a.npz") == "a" and stem_of(["x/a.npz", "b", "c"]) == "a+2"


def test_a_home_that_is_not_there_and_a_name_that_is_too_long_are_paths_like_others() -> None:
    assert expanded("~nobody-there/x") == Path("~nobody-there/x")
    assert expanded("~/x") == Path.home() / "x"
    assert not exists("x" * 5000)
    assert absolute("plain") == "plain" and absolute("runs") == str(Path.cwd() / "runs")


def test_printed_commands_can_be_typed() -> None:
    assert (
        command("resume", "a b", "--config-dir", "/c d") == "rheo resume 'a b' --config-dir '/c d'"
    )


@pytest.mark.parametrize("name", ["a=b.npz", "Zürich.npz", "#1 [x].npz", "it's.npz", "{a}.npz"])
def test_data_may_be_called_anything_and_are_found_from_elsewhere(here: Path, name: str) -> None:
    np.savez(name, observations=np.zeros((4, 3)), actions=np.zeros((4, 2)), episode_ends=[4])
    tree = compose(["algo=bc", f"data={name}"])
    assert tree["data"] == tree["source"]["path"] == str(here / name)
    assert compose(["algo=bc", f"data='{here / name}'"])["data"] == str(here / name)


def test_values_of_other_keys_are_still_read_by_the_grammar(here: Path) -> None:
    np.savez("d.npz", observations=np.zeros((4, 3)), actions=np.zeros((4, 2)), episode_ends=[4])
    net = ["policy/net=unet", "policy.net.widths=[8,16]"]
    tree = compose(["algo=bc", "data=d.npz", *net, "env.options={a: 1}"])
    assert tree["policy"]["net"]["widths"] == [8, 16] and tree["env"]["options"] == {"a": 1}
    assert compose(["algo=rfm", "env=hopper", "policy.path=cosine"])["policy"]["path"] == "cosine"


@pytest.mark.parametrize("name", ["lr=0.2", "steps=7", "Zürich [2] #1"])
def test_a_run_of_any_name_goes_through_every_verb(tiny, name: str, capsys) -> None:
    words = [word for word in tiny("sac", "x", "steps=60") if not word.startswith("name=")]
    assert main(["train", *words, f"name={name}"]) == 0
    folder = str(Path("runs", name))
    assert main(["eval", name, "episodes=2"]) == 0
    assert main(["eval", "episodes=50", "--config-dir", ".", folder]) == 0
    assert main(["resume", folder, "steps=80"]) == 0
    assert main(["eval", name, "episodes=50"]) == 0
    assert main(["compare", name, "metric=return"]) == 0
    assert main(["collect", name, "steps=20", "out=a=b.npz"]) == 0
    assert Path("a=b.npz").is_file()
    os.chdir(folder)
    assert main(["eval", ".", "episodes=2"]) == 0
    assert "Traceback" not in capsys.readouterr().err
