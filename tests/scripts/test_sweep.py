"""`rheo sweep`: the runs that `rheo train` makes of the same words, launched by Hydra's plugins."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resume import assert_equal_runs, stop_at

from rheo.envs.memory import cores
from rheo.errors import RheoError
from rheo.scripts import train as training
from rheo.scripts.cli import main
from rheo.scripts.config.launchers import LAUNCHERS, OPTUNA
from rheo.scripts.config.sweeps import alternatives, ends, label, sweep
from rheo.scripts.config.top import HOME
from rheo.scripts.jobs import ended, passed_on
from rheo.scripts.stopping import stop_signals
from rheo.scripts.store.lock import Lock
from rheo.scripts.sweep import plan

SAC = ["algo=sac", "env=hopper", "name=x"]


def installed(module):
    """Whether a plugin is there; the folder of all of them may be missing."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def needs(launcher):
    """Skips a test of a launcher whose package is missing."""
    if not installed(launcher.module):
        pytest.skip(f"{launcher.module} is not installed: pip install {launcher.package}")


@pytest.fixture
def words(tiny):
    """Words of a sweep of small runs of SAC, without their seeds."""

    def make(*more, name="x"):
        return [*tiny("sac", name), "steps=140", "source.update_ratio=1", *more]

    return make


def rows(name="x"):
    """The table of a sweep, by the names of its runs."""
    with open(f"runs/{name}.csv") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


# ------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("seed=0,1,2", ["0", "1", "2"]),
        ("seed=range(0,3)", ["0", "1", "2"]),
        ("algo=choice(sac,rfm)", ["sac", "rfm"]),
        ("algo.policy_lr=1e-3,1e-4", ["0.001", "0.0001"]),
        ("policy.net.width=[8,8],[16]", ["[8,8]", "[16]"]),
        ("seed=0", ["0"]),
        ("limits={q:1,kl:2}", ["{q:1,kl:2}"]),
        ("data=a.npz,b c.npz", ["a.npz", "b c.npz"]),
        ("data=[a.npz,b.npz]", ["[a.npz,b.npz]"]),
        ("init=there,it", ["there,it"]),
        ("init='x,y',z", ["'x,y'", "z"]),
        ("seed", None),
        ("algo.lr=(", None),
    ],
)
def test_a_word_stands_for_each_of_its_values(tmp_path, monkeypatch, word, texts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there,it").mkdir()
    key = word.partition("=")[0]
    expected = [word] if texts is None else [f"{key}={text}" for text in texts]
    assert alternatives(word, searching=False) == expected


def test_of_a_search_the_ends_of_numbers_and_all_names_are_tried():
    many = [
        alternatives(word, searching=True)
        for word in ("a=tag(log,interval(1e-4,1e-2))", "b=range(1,9)", "c=p,q,r")
    ]
    assert many == [["a=0.0001", "a=0.01"], ["b=1", "b=8"], ["c=p", "c=q", "c=r"]]
    found = ends(many)
    assert found[0] == ("a=0.0001", "b=1", "c=p") and len(found) == 5
    assert ("a=0.0001", "b=1", "c=r") in found and ("a=0.0001", "b=8", "c=p") in found


def test_a_folder_is_named_by_what_differs_in_whatever_order_it_was_typed():
    assert label(["seed=1", "env=hopper", "algo=sac"]) == "algo=sac_env=hopper_seed=1"
    assert label(["policy/net=unet", "policy.width=[64,32]", "init='runs/a b'"]) == (
        "init=runs-a-b_policy.width=64-32_policy-net=unet"
    )
    assert label(["algo.lr=-1e-05"]) == "algo.lr=-1e-05"
    assert label(["seed=1", "steps=5"]) == "steps=5_seed=1"  # so that compare leaves it out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["algo=sac", "seed=0,1"], "name=NAME has to be given"),
        ([*SAC, "seed=1"], "no word has several values"),
        ([*SAC, "seed=0,1", "seed=2,3"], "seed: is given twice"),
        ([*SAC, "seed=0,1", "jobs=2"], "jobs=2: launcher=basic runs one after another"),
        ([*SAC, "seed=0,1", "jobs=0"], "jobs=0: a positive whole number"),
        ([*SAC, "seed=0,1", "launcher=joblip"], "did you mean 'joblib'?"),
        ([*SAC, "seed=0,1", "hydra/launcher=joblib"], "here it is launcher=joblib"),
        ([*SAC, "seed=0,1", "hydra.launcher.n_jobs=2"], "launcher=basic has no settings"),
        ([*SAC, "seed=0,1", "hydra.sweeper.n_trials=2"], "is for sweeper=optuna"),
        ([*SAC, "seed=0,1", "hydra.run.dir=x"], "Hydra's own settings are fixed"),
        ([*SAC, "seed=0,1", "-m"], "-m: `rheo sweep seed=0,1,2"),
        ([*SAC, "algo.policy_lr=interval(0,1)"], "searched by sweeper=optuna"),
        ([*SAC, "algo=glob(s*)"], "name the values one by one"),
        ([*SAC, "seed=range(1,1)"], "holds no value"),
        ([*SAC, "seed=0,0"], "seed=0: two combinations would be in this folder"),
        ([*SAC, "seed=0,1", "sead=1"], "sead: unknown key; did you mean 'seed'?"),
        ([*SAC[1:], "algo=sac,rfmm"], "algo=rfmm: algo=rfmm: no such algo; did you mean 'rfm'?"),
        ([*SAC, "seed=0,-1,2,-3"], "seed=-1: must be 0 or more\nseed=-3: seed=-3: must be"),
        ([*SAC[:2], "name=../x", "seed=0,1"], "cannot be empty or contain '..'"),
        ([*SAC, "seed=0,1", f"algo.policy_lr={'1e-3,' * 2}1e-4"], "two combinations"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, argv, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *argv]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_checks_do_without_torch_and_say_once_what_is_true_of_all(tmp_path):
    script = (
        "import sys; from rheo.scripts.cli import main; code = main(sys.argv[1:]);"
        "print(code, 'torch' in sys.modules, 'mujoco' in sys.modules)"
    )
    words = ["sweep", *SAC, "steps=100", "seed=0,1", "algo.policy_lr=1e-3,-1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["2", "False", "False"]
    assert done.stderr.count("nothing is learned") == 1
    assert "algo.policy_lr=-1_seed=0, algo.policy_lr=-1_seed=1: algo.policy_lr=-1" in done.stderr


@pytest.mark.parametrize("name", [*LAUNCHERS, "optuna"])
def test_a_missing_package_is_one_line_with_its_command(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    plugin = OPTUNA if name == "optuna" else LAUNCHERS[name]
    if installed(plugin.module):
        pytest.skip(f"{plugin.module} is installed")
    word = "sweeper=optuna" if name == "optuna" else f"launcher={name}"
    assert main(["sweep", *SAC, "seed=0,1", word]) == 2
    text = f"rheo: {word} needs a package that is missing: pip install {plugin.package}\n"
    assert capsys.readouterr().err == text


def test_a_setting_that_a_launcher_has_not_is_refused(words, capsys):
    needs(LAUNCHERS["joblib"])
    assert main(["sweep", *words("seed=0,1"), "launcher=joblib", "hydra.launcher.n_job=2"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rheo: hydra.launcher.n_job=2: Could not override 'hydra.launcher.n_job'")


# ------------------------------------------------------------------ runs


def test_every_run_is_what_train_makes_and_is_made_once(words, capsys):
    own = words("seed=1")
    assert main(["sweep", *own, "algo.policy_lr=1e-3,1e-4"]) == 0
    out = capsys.readouterr().out
    assert "2/2 " in out and out.count("| done | 140 |") == 2
    assert main(["train", *words("algo.policy_lr=1e-4", "seed=1", name="straight")]) == 0
    one, other = "algo.policy_lr=0.0001", "algo.policy_lr=0.001"
    assert_equal_runs("straight", f"x/{one}")
    assert sorted(rows()) == sorted(path.name for path in Path("runs/x").glob("[!.]*"))
    last = json.loads(Path("runs/straight/metrics.jsonl").read_text().splitlines()[-1])
    assert float(rows()[one]["return"]) == last["eval/return"]
    started = json.loads(Path("runs/x", one, "run.json").read_text())["starts"][0]["command"]
    assert started[:2] == ["rheo", "train"] and {"seed=1", one} < set(started)
    capsys.readouterr()
    files = [f"runs/x/{name}" for name in (one, other)]
    assert main(["resume", files[0]]) == 0 and main(["eval", f"x/{one}", "episodes=2"]) == 0
    assert main(["compare", *files]) == 0
    assert f"| {other} | InvertedPendulum-v5 | 140 | 1 |" in capsys.readouterr().out

    before = [Path(file, "run.json").stat().st_mtime_ns for file in files]
    assert main(["sweep", "algo.policy_lr=1e-4,1e-3", *own]) == 0  # in another order
    out = capsys.readouterr().out
    assert "2 runs, 2 done before, 0 to go on with, 0 new" in out
    assert out.count("| done | 140 |") == 2
    more = ["algo.policy_lr=1e-4,1e-5", "steps=150"]  # a new value, and longer
    assert main(["sweep", *own, *more]) == 0
    assert "2 runs, 0 done before, 1 to go on with, 1 new" in capsys.readouterr().out
    after = [Path(file, "run.json").stat().st_mtime_ns for file in files]
    assert after[0] != before[0] and after[1] == before[1]
    assert {row["step"] for row in rows().values()} == {"150"}
    assert main(["sweep", *own, *more, "critic.width=8"]) == 2
    err = capsys.readouterr().err
    assert "was made by other words, critic.width is 16 there and 8 here" in err
    searched = ended(Path(files[0]), [*own, one, "critic.width=8"])  # whose values are not known
    assert searched.state == "failed" and "critic.width is 16 there" in searched.why


def test_a_failing_job_is_named_and_the_others_go_on(words, capsys, monkeypatch):
    own = words("limits.q=1e-9,1e6,1e7")
    go_between = training.Loop.between

    def between(self, before, now, steps):
        go_between(self, before, now, steps)
        if self.run.path.name == "limits.q=1000000.0":
            raise ZeroDivisionError("a fault in somebody's code")

    with monkeypatch.context() as patch:
        patch.setattr(training.Loop, "between", between)
        assert main(["sweep", *own]) == 1
    out, err = capsys.readouterr()
    limited, broken, good = rows().values()
    why = "ZeroDivisionError: a fault in somebody's code"
    assert broken["why"] == why and f"2/3 limits.q=1000000.0: failed: {why}" in out
    assert "Traceback" in err and err.count("at step 42 critic/q") == 1
    assert limited["state"] == "failed" and "above limits.q=1e-09" in limited["why"]
    assert good["state"] == "done"
    assert main(["sweep", *own, "limits.kl=9"]) == 1  # a limit may change; failed ones start anew
    limited, broken, good = rows().values()
    assert [limited["state"], broken["state"], good["state"]] == ["failed", "done", "done"]
    assert broken["step"] == "140" and list(Path("runs/x/.sweep/lost").iterdir())


def test_a_sweep_that_is_stopped_says_75_and_goes_on_where_it_was(words, monkeypatch, capsys):
    assert main(["train", *words("seed=0", name="straight")]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 73)
        assert main(["sweep", *words("seed=0,1")]) == 75
    found = rows()
    assert found["seed=0"]["state"] == "stopped" and found["seed=1"]["state"] == "not started"
    assert "1/2 seed=0: stopped at step" in capsys.readouterr().out
    assert not Path("runs/x/seed=1").exists()
    assert main(["sweep", *words("seed=0,1")]) == 0
    assert "0 done before, 1 to go on with, 1 new" in capsys.readouterr().out
    assert_equal_runs("straight", "x/seed=0")
    assert {row["state"] for row in rows().values()} == {"done"}


def test_a_schedulers_signal_is_answered_after_the_run_was_saved(words, monkeypatch):
    answered = []

    def requeue(number, _):
        answered.append((number, len(list(Path("runs/x/seed=0/ckpt").glob("*/manifest.json")))))

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with monkeypatch.context() as patch:
            stop_at(patch, 51, "SIGUSR2")
            assert main(["sweep", *words("seed=0,1", "save_every=1000", "steps=2000")]) == 75
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert answered == [(signal.SIGUSR2, 1)]


def test_a_stop_reaches_a_job_that_is_not_training_yet(tmp_path):
    file = tmp_path / "stop"
    with stop_signals() as outer, passed_on(outer, file):
        file.touch()
        with stop_signals() as training_s:
            end = time.monotonic() + 20
            while not training_s and time.monotonic() < end:
                time.sleep(0.01)
            assert training_s.signal == "SIGTERM"


def test_data_sets_are_values_and_code_of_the_users_goes_on(tmp_path, tiny, episodes, capsys):
    own = [word for word in tiny("bc", "x") if not word.startswith("data=")]
    (tmp_path / "mine" / "algo").mkdir(parents=True)
    (tmp_path / "mine" / "sweep_lab.py").write_text(
        "from rheo.algos.bc import BC\n\n\nclass Mine(BC):\n    pass\n"
    )
    ours = (HOME / "algo" / "bc.yaml").read_text().replace("rheo.algos.bc.BC", "sweep_lab.Mine")
    (tmp_path / "mine" / "algo" / "mine.yaml").write_text(ours)
    own = ["--config-dir", "mine", "algo=mine", *(word for word in own if word != "algo=bc")]
    episodes(tmp_path / "a.npz", [9, 30, 25, 40])
    episodes(tmp_path / "b c.npz", [20, 21])
    assert main(["sweep", *own, "data=a.npz,b c.npz", "steps=20"]) == 0
    assert main(["sweep", *own, "data=a.npz,b c.npz", "steps=30"]) == 0
    assert "2 runs, 0 done before, 2 to go on with, 0 new" in capsys.readouterr().out
    assert list(rows()) == ["data=a.npz", "data=b-c.npz"]
    assert all(row["val/loss"] and row["step"] == "30" for row in rows().values())


def test_more_threads_than_cores_are_said(words, caplog):
    needs(LAUNCHERS["joblib"])
    for jobs in (1, 999):
        plan(sweep(words("seed=0,1", "launcher=joblib", f"jobs={jobs}")), Path("runs/x"))
    said = {record.getMessage() for record in caplog.records}
    assert said == {f"jobs=999 with threads=1: {cores()} cores can be used, so they share them"}


def test_a_folder_in_use_and_one_of_a_run_are_refused(words, capsys):
    Path("runs/x/.sweep").mkdir(parents=True)
    lock = Lock(Path("runs/x/.sweep"))
    assert main(["sweep", *words("seed=0,1")]) == 2
    assert "runs/x/.sweep is in use by" in capsys.readouterr().err
    lock.release()
    Path("runs/x/config.yaml").touch()
    assert main(["sweep", *words("seed=0,1")]) == 2
    assert "runs/x: is a run, so no sweep can be there" in capsys.readouterr().err


# ------------------------------------------------------------------ launchers


def start(argv, log):
    """`rheo sweep ...` in a process of its own, its output in a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as stream:
        command = [sys.executable, "-m", "rheo.scripts.cli", "sweep", *argv]
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_processes_stop_with_the_sweep_and_go_on_equally(words, tmp_path, launcher):
    needs(LAUNCHERS[launcher])
    own = words("seed=0,1,2", f"launcher={launcher}", "jobs=2", "save_every=20")
    log = tmp_path / "log"
    process = start([*own, "steps=100000"], log)
    end = time.monotonic() + 400
    saved = Path("runs/x")
    while len({path.parts[2] for path in saved.glob("seed=?/ckpt/*/manifest.json")}) < 2:
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(200) == 75, log.read_text()
    states = {name: row["state"] for name, row in rows().items()}
    assert states == {"seed=0": "stopped", "seed=1": "stopped", "seed=2": "not started"}
    steps = str(max(int(row["step"]) for row in rows().values()) + 60)
    assert start([*own, f"steps={steps}"], log).wait(400) == 0, log.read_text()
    assert f"2 to go on with, 1 new; 2 at once by launcher={launcher}" in log.read_text()
    assert "seed=2 | step 0 /" in Path("runs/x/.sweep/seed=2.log").read_text()
    assert "steps/s" not in log.read_text()
    for seed in (1, 2):  # one that was cut, one that was not
        straight = words(f"seed={seed}", "save_every=20", f"steps={steps}", name=f"s{seed}")
        assert main(["train", *straight]) == 0
        assert_equal_runs(f"s{seed}", f"x/seed={seed}")


def test_optuna_searches_and_asks_the_same_again(words, capsys):
    needs(OPTUNA)
    own = words("algo.policy_lr=tag(log,interval(1e-4,1e-2))", "seed=0,1", "sweeper=optuna")
    assert main(["sweep", *own, "hydra.sweeper.n_trials=3"]) == 0
    out, first = capsys.readouterr().out, rows()
    assert "3 runs, to maximize the return of the last evaluation" in out
    best = max(float(row["return"]) for row in first.values())
    assert f"return {best:.4g}: what it was chosen by" in out
    assert len(first) == 3 and all(row["state"] == "done" for row in first.values())
    before = {name: Path("runs/x", name, "run.json").stat().st_mtime_ns for name in first}
    assert main(["sweep", *own, "hydra.sweeper.n_trials=4"]) == 0
    again = rows()
    assert len(again) == 4 and again.items() >= first.items()
    after = {name: Path("runs/x", name, "run.json").stat().st_mtime_ns for name in first}
    assert before == after


def test_optuna_needs_something_to_look_at(words):
    needs(OPTUNA)
    own = [*words("algo.policy_lr=interval(1e-4,1e-2)"), "sweeper=optuna"]
    with pytest.raises(RheoError, match="must be maximize or minimize"):
        sweep([*own, "hydra.sweeper.direction=[maximize,minimize]"])
    with pytest.raises(RheoError, match="write it as a word"):
        sweep([*own, "hydra.sweeper.params={a:1}"])
    with pytest.raises(RheoError, match="searches no names"):
        sweep([*own, "init=a,b"])
    with pytest.raises(RheoError, match="^algo.policy_lr=-1.0: algo.policy_lr=-1: must be above"):
        sweep([*words("algo.policy_lr=interval(-1,1)"), "sweeper=optuna"])
