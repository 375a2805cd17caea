"""`rheo serve`: the same actions as in this process, whatever strangers send."""

import gc
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rheo
from rheo.scripts import client, pace
from rheo.scripts.cli import main
from rheo.scripts.client import Chunks, Client, Refused, Stopped, packed, unpacked
from rheo.scripts.config.serving import Serving
from rheo.scripts.config.serving import serve as asked
from rheo.scripts.serve import Server, beside, bound, goes_on, made, safe

websockets = pytest.importorskip("websockets.sync.client")
SMALL: dict[str, Any] = {
    **{"policy.net.width": 16, "policy.net.depth": 1, "critic.width": 16},
    **{"source.batch_size": 8, "source.warmup": 20, "env.num_envs": 2},
}
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """RFM in plans of 6, of which 4 are executed, after two observations."""
    name = str(tmp_path_factory.mktemp("served") / "r")
    chunks = {"env.execute": 4, "env.obs_steps": 2}
    settings = {"steps": 60, "episodes": 1, "horizon": 6, "name": name}
    rheo.train(algo="rfm", env="inverted_pendulum", overrides=SMALL | chunks, **settings)
    return name


def serving(run: str, **changes: Any) -> Serving:
    return asked([run, "port=0", "clients=4", "frame=0.25"])._replace(**changes)


@pytest.fixture(scope="module")
def served(run: str) -> Iterator[tuple[Server, str]]:
    """A server in a thread of this process, and its address."""
    wanted = serving(run)
    with ThreadPoolExecutor(1) as pool, bound(wanted) as sock:
        server = pool.submit(made, wanted, pool).result()
        with beside(server, sock) as url:
            yield server, url


@pytest.fixture
def url(served: tuple[Server, str]) -> Iterator[str]:
    """The address; a test leaves nobody connected and answers undelayed."""
    server, where = served
    server.delay = 0
    until(lambda: not server.slots)
    yield where
    server.delay = 0


def until(good: Any) -> None:
    """Waits for what another thread is about to do."""
    for _ in range(600):
        if good():
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened in half a minute")


# ---- the same actions ----------------------------------------------------------------------------


def test_an_episode_through_the_server_is_that_of_this_process(run: str, url: str) -> None:
    own, env = rheo.load(run), rheo.make_env("inverted_pendulum")
    with rheo.Client(url) as policy:
        assert policy.about["plan"] == {"steps": 4, "executed": 4}
        assert policy.about["observation"] == {"parts": {"flat": 4}, "images": {}, "steps": 2}
        assert policy.about["action"] == {"low": [-3], "high": [3]} and policy.about["row"] == 0
        for seed in (0, 1):
            obs, _ = env.reset(seed=seed)
            for _ in range(9):
                action = policy.act(obs)
                assert action.shape == (1,) and np.array_equal(action, own.act(obs))
                obs = env.step(action.astype(np.float32))[0]
            own.reset()
            policy.reset()


def test_clients_at_once_have_their_own_rows(run: str, url: str) -> None:
    own, draw = rheo.load(run, seed=7, execute=2), np.random.default_rng(0)
    with ExitStack() as room:
        people = [room.enter_context(Client(url, seed=7, row=i, execute=2)) for i in range(3)]
        for i in range(7):
            obs = draw.normal(size=(3, 4)).astype(np.float32)
            wanted = own.act(obs)
            for j in np.random.default_rng(i).permutation(3):
                assert np.array_equal(people[j].act({"flat": obs[j]}), wanted[j])
            if i == 2:
                own.reset([1])
                people[1].reset()
        last = room.enter_context(Client(url))  # whose row none of the others has by itself
        assert last.about["row"] == 3 * 64 and last.about["seed"] == 100_000


def test_one_client_runs_several_episodes(run: str, url: str) -> None:
    own, obs = rheo.load(run), np.full((2, 4), 0.1)
    with Client(url) as policy:
        assert np.array_equal(policy.act(obs), own.act(obs))
        policy.reset([1])
        own.reset([1])
        assert np.array_equal(policy.act(obs), own.act(obs))
        with pytest.raises(Refused, match="3 observations at once, and these episodes run 2"):
            policy.act(np.zeros((3, 4)))


def test_the_client_needs_neither_rheo_nor_torch(run: str, url: str, tmp_path: Path) -> None:
    shutil.copy(client.__file__, tmp_path / "client.py")
    code = "import sys\nsys.modules['torch'] = sys.modules['rheo'] = None\nimport client\n"
    code += f"print(client.Client('{url}').act([0.1, 0.2, 0.3, 0.4]).tolist())"
    env = {"PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert json.loads(done.stdout or "0") == rheo.load(run).act([0.1, 0.2, 0.3, 0.4]).tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("file", ["p.pt2", "p.onnx"])
def test_a_program_is_served_as_its_run(
    run: str, url: str, tmp_path: Path, monkeypatch: Any, capsys: Any, file: str
) -> None:
    """To rounding: its weights are the run's, and its one draw is from the same noise."""
    for name in ("onnx", "onnxscript", "onnxruntime") if file == "p.onnx" else ():
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    assert main(["export", run, f"out={file}"]) == 0
    wanted = asked([file, "port=0"])
    with ThreadPoolExecutor(1) as pool, bound(wanted) as sock:
        server = pool.submit(made, wanted, pool).result()
        with beside(server, sock) as other, Client(url, row=0) as one, Client(other) as two:
            assert two.about["hold"] is None and not two.about["continued"]
            same = ("plan", "observation", "action", "rate_hz", "environment", "step", "algorithm")
            assert all(one.about[key] == two.about[key] for key in same)
            for i in range(9):
                obs = np.full(4, 0.01 * i)
                np.testing.assert_allclose(two.act(obs), one.act(obs), atol=1e-5)
    told = json.loads(Path(f"{file}.json").read_text())
    Path(f"{file}.json").write_text(json.dumps(told | {"sha256": "0"}))
    assert main(["serve", file, "port=0"]) == 2
    assert f"{file}: not the program that {file}.json describes" in capsys.readouterr().err
    Path(f"{file}.json").write_text("[]")
    assert main(["serve", file, "port=0"]) == 2
    assert "no contract of a program" in capsys.readouterr().err
    Path(f"{file}.json").unlink()
    assert main(["serve", file, "port=0"]) == 2
    assert f"its contract {file}.json is missing" in capsys.readouterr().err
    assert main(["serve", "q.pt2"]) == 2
    assert "q.pt2: there is no such file" in capsys.readouterr().err


# ---- plans beside the loop -----------------------------------------------------------------------


def test_a_plan_begins_with_what_is_being_executed(url: str) -> None:
    plans, obs = {}, np.full(4, 0.1)
    with Client(url) as policy:
        words, free = policy.answer(policy.ask("chunk", {"obs": obs}))
        assert words["continued"] == "false" and free["plan"].shape == (4, 1)
        for then in (-2.0, 2.0):
            policy.answer(policy.ask("begin"))  # the same noise again
            arrays = {"obs": obs, "left": np.array([[0.5], [1.0], [then]])}
            words, held = policy.answer(policy.ask("chunk", arrays, frozen="2"))
            assert words["continued"] == "true" and held["plan"][:2, 0].tolist() == [0.5, 1.0]
            plans[then] = held["plan"]
        assert policy.about["continued"] and plans[-2.0][2, 0] < plans[2.0][2, 0]


def test_a_loop_executes_plans_that_go_on_from_each_other(url: str) -> None:
    """With answers that arrive when the test says, so that nothing depends on the machine."""
    with Client(url) as policy:
        chunks, obs = Chunks(policy, every=1), np.full(4, 0.1)
        first = chunks.act(obs)
        plan = chunks.plan.copy()
        assert plan.shape == (4, 1) and np.array_equal(first, plan[0])
        second = chunks.act(obs)  # asks for the next plan; 2 and 3 are left behind this one
        assert chunks.waiting is not None and np.array_equal(second, plan[1])
        chunks.look(30)
        assert chunks.at == 1 and list(chunks.delays)[-1] == 1
        assert np.array_equal(chunks.plan[0], plan[1])  # frozen: it was executed meanwhile
        new = chunks.plan.copy()
        assert np.array_equal(chunks.act(obs), new[1]) and chunks.misses == 0


def test_without_a_plan_in_time_it_holds_and_then_stops(
    served: tuple[Server, str], url: str
) -> None:
    with Client(url) as policy:
        chunks, obs = Chunks(policy, every=2, hold="last", stop=3), np.full(4, 0.1)
        chunks.act(obs)
        served[0].delay = 5
        last = [chunks.act(obs) for _ in range(3)][-1]
        assert np.array_equal(last, chunks.plan[3]) and chunks.misses == 0
        assert all(np.array_equal(chunks.act(obs), last) for _ in range(2))
        chunks.hold = "neutral"
        assert chunks.act(obs) == 0 and chunks.misses == 3
        with pytest.raises(Stopped, match="4 steps without a plan"):
            chunks.act(obs)
        with pytest.raises(TimeoutError):
            policy.answer(policy.ask("act", {"obs": obs}), within=0.01)


def test_what_is_safe_without_a_plan_is_said_or_asked(url: str) -> None:
    assert safe({"id": "Hopper-v5"}) == "neutral" and safe({"id": "AdroitHandPen-v1"}) == "last"
    assert safe({"id": "robosuite/Lift", "options": {"input_type": "absolute"}}) == "last"
    with Client(url) as policy:
        assert policy.about["hold"] == "neutral"
        policy.about["hold"] = safe({"id": None})
        with pytest.raises(ValueError, match='say what is safe without a plan: hold="last"'):
            Chunks(policy)
        with pytest.raises(ValueError, match="every=4: plans have 4 steps"):
            Chunks(policy, every=4, hold="last")


def test_a_policy_without_a_field_begins_with_what_is_executed(tiny: Any) -> None:
    words = tiny("bc_gaussian", "g", "horizon=3", "steps=40", "eval_every=40", "log_every=40")
    assert main(["train", *words]) == 0
    policy, left = rheo.load("g"), np.full((1, 2, 2), 0.5)
    policy.see(np.zeros((1, 3), np.float32))
    plan, goes_on = policy.chunk(left, 1)
    free, _ = policy.chunk()
    assert not goes_on and (plan[0, 0] == 0.5).all() and np.array_equal(plan[0, 1:], free[0, 1:])
    with pytest.raises(ValueError, match=r"left: \(1, 4, 2\), and plans are \[1, '0 to 3', 2\]"):
        policy.chunk(np.zeros((1, 4, 2)), 1)


def test_what_corrects_its_actions_gives_no_plans(tiny: Any) -> None:
    words = tiny("resip", "c", "env=inverted_pendulum", "horizon=2", "steps=60")
    assert main(["train", *words]) == 0
    policy = rheo.load("c")
    policy.see(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="each action of these plans is corrected"):
        policy.chunk()
    assert policy.usable == 1 and not goes_on(policy) and policy.step().shape == (1, 1)


def test_it_measures_itself(run: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CALLS": 20, "WARM": 1, "SECONDS": 0.2, "LATE": (0, 300)}.items():
        monkeypatch.setattr(pace, name, value)
    assert main(["serve", run, "port=0", "check=true"]) == 0
    act, chunk, quick, slow = capsys.readouterr().out.splitlines()
    assert act.startswith("act: ") and chunk.startswith("chunk: ") and " 0 ms late: " in quick
    assert int(slow.partition("late: ")[2].split()[0]) >= 5  # of 10 steps, 4 of them planned


# ---- what strangers send -------------------------------------------------------------------------

GOOD = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("words", "arrays", "code", "message"),
    [
        ({"do": "act"}, {}, "observation", "an observation is the array obs, or its parts"),
        ({"do": "act"}, {"obs": np.zeros(3)}, "observation", "the policy reads 4 numbers"),
        ({"do": "act"}, {"obs": np.zeros((2, 5))}, "observation", "the policy reads 4 numbers"),
        ({"do": "act"}, {"obs": np.zeros((0, 4))}, "observation", ""),
        ({"do": "act"}, {"obs": np.zeros((65, 4))}, "observation", "65 observations at once"),
        ({"do": "act"}, {"obs.flatt": GOOD}, "observation", "no 'flat' in the observation"),
        ({"do": "act"}, {"obs": GOOD, "obs.flat": GOOD}, "observation", "the array obs, or its"),
        ({"do": "act"}, {"obs": np.array([0, 0, np.nan, 0])}, "observation", "flat: number 2 is"),
        ({"do": "act"}, {"obs": np.array([0, 0, 0, 1e300])}, "observation", "flat: number 3 is"),
        ({"do": "act"}, {"obs": np.zeros(4, np.complex64)}, "observation", "are no numbers"),
        ({"do": "atc"}, {"obs": GOOD}, "word", "did you mean 'act'"),
        ({}, {"obs": GOOD}, "word", "do=''"),
        ({"do": "begin", "seed": "-1"}, {}, "word", "seed='-1': a whole number is needed"),
        ({"do": "begin", "execute": "9"}, {}, "word", "plans have 6 steps"),
        ({"do": "begin", "row": "9" * 30}, {}, "word", "a whole number"),
        ({"do": "reset"}, {"rows": np.array([5])}, "word", "rows: whole numbers below"),
        ({"do": "chunk", "frozen": "x"}, {"obs": GOOD}, "word", "frozen='x'"),
        ({"do": "chunk"}, {"obs": GOOD, "left": np.zeros((5, 1))}, "observation", "left: (1, 5, 1"),
        ({"do": "chunk"}, {"obs": GOOD, "left": np.full((1, 1), np.inf)}, "word", "finite"),
        (
            {"do": "chunk", "frozen": "3"},
            {"obs": GOOD, "left": np.zeros((2, 1))},
            "observation",
            "frozen=3: of 2 actions",
        ),
    ],
)
def test_a_wrong_request_is_answered_and_the_session_goes_on(
    url: str, words: dict[str, str], arrays: dict[str, Any], code: str, message: str
) -> None:
    with websockets.connect(url, compression=None) as wire:
        wire.send(packed(words | {"id": "7"}, arrays))
        told, found = unpacked(wire.recv(30))
        assert told["code"] == code and message in told["error"] and told["id"] == "7" and not found
        wire.send(packed({"do": "act", "id": "8"}, {"obs": GOOD}))
        assert unpacked(wire.recv(30))[1]["action"].shape == (1,)


def strange(draw: np.random.Generator) -> bytes | str:
    """A stranger's frame: noise, a good one with bytes changed, cut or repeated, or odd words."""
    kind = draw.integers(6)
    if kind == 0:
        return draw.bytes(int(draw.integers(0, 200)))
    if kind == 1:
        return str(draw.integers(1 << 30))
    if kind == 2:
        shape = tuple(draw.integers(0, 5, draw.integers(0, 4)))
        kinds = ["f4", "f8", "f2", "i8", "u1", "c8", "?"]
        array = np.asarray(draw.normal(size=shape) * 1e3).astype(draw.choice(kinds))
        words = {
            str(draw.choice(["do", "id", "seed"])): str(draw.choice(["act", "chunk", "see", "go"]))
        }
        return packed({"do": "act"} | words, {str(draw.choice(["obs", "obs.flat", "left"])): array})
    frame = bytearray(
        packed({"do": "chunk", "id": "1", "frozen": "1"}, {"obs": GOOD, "left": LEFT})
    )
    if kind == 3:
        return bytes(frame[: draw.integers(len(frame))])
    if kind == 4:
        return bytes(frame) * 2
    for _ in range(draw.integers(1, 5)):
        frame[draw.integers(len(frame))] = draw.integers(256)
    return bytes(frame)


LEFT = np.zeros((2, 1), np.float32)


def test_a_thousand_strange_frames_change_nothing_for_others(url: str, caplog: Any) -> None:
    draw, obs = np.random.default_rng(0), np.full(4, 0.1)
    codes: dict[str, int] = {}
    with Client(url, row=9) as good, websockets.connect(url, compression=None) as wire:
        first = good.act(obs)
        for i in range(1000):
            wire.send(strange(draw))
            wire.send(packed({"do": "reset", "id": f"end {i}"}, {}))  # `see` has no answer
            while True:
                words, _ = unpacked(wire.recv(60))
                if words["id"] == f"end {i}":
                    break
                code = words.get("code", "answered")
                codes[code] = codes.get(code, 0) + 1
        good.reset()
        assert good.act(obs).shape == first.shape
    assert set(codes) == {"frame", "word", "observation", "answered"} and codes["frame"] > 400
    assert "was not answered" not in caplog.text
    with Client(url, row=9) as again:
        assert np.array_equal(again.act(obs), first)


def test_an_answer_does_not_wait_until_the_last_one_was_acknowledged(url: str) -> None:
    """Which takes 40 ms where a client asks twice before it listens."""
    server = pytest.importorskip("websockets.asyncio.server")
    with Client(url):
        ends = [each for each in gc.get_objects() if type(each) is server.ServerConnection]
        live = [end.transport.get_extra_info("socket") for end in ends if end.state.name == "OPEN"]
        assert live and all(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in live)


def test_a_message_that_is_too_large_ends_its_connection_alone(url: str) -> None:
    closed = pytest.importorskip("websockets.exceptions").ConnectionClosedError
    with Client(url) as good, websockets.connect(url, compression=None) as wire:
        wire.send(bytes(1 << 19))
        with pytest.raises(closed) as error:
            wire.recv(30)
        assert error.value.rcvd.code == 1009
        assert good.act(GOOD).shape == (1,)


def test_bytes_that_are_not_even_http_are_dropped(url: str) -> None:
    host, port = url.removeprefix("ws://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(np.random.default_rng(0).bytes(4000) + b"\r\n\r\n")
        raw.settimeout(30)
        while raw.recv(4096):
            pass
    with Client(url) as good:
        assert good.act(GOOD).shape == (1,)


def answer_of(url: str, **headers: str) -> tuple[int, str]:
    """Status and text of a plain request."""
    request = urllib.request.Request(url.replace("ws://", "http://"), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_who_may_come_in(run: str, served: tuple[Server, str]) -> None:
    refused = pytest.importorskip("websockets.exceptions").InvalidStatus
    wanted = serving(run, token=TOKEN, clients=1)
    old = served[0]
    with bound(wanted) as sock:
        server = Server(old.policy, old.about, wanted, old.pool)
        with beside(server, sock) as url:
            for token in (None, "wrong", TOKEN[:-1]):
                with pytest.raises(refused, match="401"):
                    Client(url, token)
            with pytest.raises(refused, match="403"):  # a web page's script
                websockets.connect(url, origin="http://x", additional_headers=bearer())
            with Client(url, TOKEN) as good:
                assert good.act(GOOD).shape == (1,)
                with pytest.raises(refused, match="503"):
                    Client(url, TOKEN)
                status, text = answer_of(f"{url}/health")
                assert status == 200 and json.loads(text)["clients"] == 1
            assert answer_of(f"{url}/x") == (404, "there is / and /health\n")


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["host=0.0.0.0"], "host=0.0.0.0: other machines could move the robot; give a token"),
        (["host=example.org"], "other machines could move the robot"),
        (["token=nowhere"], "token=nowhere: cannot be read"),
        (["token=short"], "token=short: a token is one word of 16 or more letters and digits"),
        (["port=70000"], "port=70000: a port is needed, 0 to 65535"),
        (["hold=still"], "hold=still: not known"),
        (["prot=1"], "unknown option 'prot'; did you mean 'port'"),
        (["frame=0"], "frame=0: a positive number"),
        (["other"], "one run is meant"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    run: str, words: list[str], message: str, capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("secret\n")
    assert main(["serve", run, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_a_missing_package_and_a_bad_variable(
    run: str, url: str, capsys: Any, monkeypatch: Any
) -> None:
    assert main(["serve", run, f"port={url.rpartition(':')[2]}"]) == 3
    assert "Address already in use; choose another port=" in capsys.readouterr().err
    monkeypatch.setenv("RHEO_TOKEN", "a b")
    assert main(["serve", run]) == 2
    assert "RHEO_TOKEN: a token is one word" in capsys.readouterr().err
    monkeypatch.delenv("RHEO_TOKEN")
    monkeypatch.setattr("rheo.scripts.config.serving.importable", lambda name: False)
    assert main(["serve", run]) == 2
    assert "pip install 'rheo-rl[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_and_tells_who_is_there(run: str, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "rheo.scripts.cli", "serve", run, "port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        with Client(first.split()[-1]) as policy:
            policy.act(GOOD)
            process.send_signal(number)
            with pytest.raises(Exception, match="1001"):
                policy.wire.recv(60)
        rest = process.stdout.read()
        assert process.wait(60) == 0
    assert "plans of 4 steps, which go on from the last; without one: 0" in rest
    assert rest.endswith("ended; 2 answers\n")


def test_health_is_asked_while_an_answer_is_made(served: tuple[Server, str], url: str) -> None:
    server, _ = served
    server.delay = 1
    with Client(url) as policy:
        number = policy.ask("act", {"obs": GOOD})
        assert answer_of(f"{url}/health")[0] == 200
        assert policy.answer(number)[1]["action"].shape == (1,)
