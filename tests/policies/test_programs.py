"""Programs of other people: what is refused before anything of it runs, and what is read."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rheo.errors import RheoError
from rheo.policies import rehearsal
from rheo.policies.exported import Exported
from rheo.policies.programs import Onnx, opened, prepared
from rheo.policies.vetting import MODEL, packed, refuse_expression, refuse_graph

Records = dict[str, bytes]
WEIGHTS = "data/weights/model_weights_config.json"


class Hand(nn.Module):
    """tanh(W obs + noise), scaled by a buffer."""

    gain: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.register_buffer("gain", torch.ones(1))

    def forward(self, obs, noise):
        return torch.tanh(self.layer(obs)[:, None, :] + noise) * self.gain


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """An archive of torch.export, for any number of rows."""
    path = tmp_path_factory.mktemp("good") / "hand.pt2"
    given, dim = (torch.zeros(2, 4), torch.zeros(2, 2, 1)), {0: torch.export.Dim("rows")}
    torch.export.save(torch.export.export(Hand(), given, dynamic_shapes=(dim, dim)), path)
    return path


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A file that hostile code makes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "CANARY"


def altered(path: Path, change: Callable[[Records], Any]) -> bytes:
    """The content of an archive after `change` of its records."""
    archive = torch._C.PyTorchFileReader(str(path))
    names = [name for name in archive.get_all_records() if not name.startswith(".data")]
    records = {name: archive.get_record(name) for name in names}
    change(records)
    return packed(records).getvalue()


class Bomb:
    """A pickle that makes a file when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch CANARY",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    return buffer.getvalue()


def as_inputs(records: Records) -> None:
    records["data/sample_inputs/model.pt"] = pickled()


def as_weight(records: Records) -> None:
    config = json.loads(records[WEIGHTS])
    config["config"]["layer.bias"]["use_pickle"] = True
    file = config["config"]["layer.bias"]["path_name"]
    records |= {WEIGHTS: json.dumps(config).encode(), f"data/weights/{file}": pickled()}


def in_model(change: Callable[[dict[str, Any]], Any]) -> Callable[[Records], None]:
    """A change of models/model.json."""

    def act(records: Records) -> None:
        node = json.loads(records[MODEL])
        change(node)
        records[MODEL] = json.dumps(node).encode()

    return act


def as_expression(node: dict[str, Any]) -> None:
    sizes = node["graph_module"]["graph"]["tensor_values"]["obs"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "__import__('os').system('touch CANARY')"


def as_guard(node: dict[str, Any]) -> None:
    node["guards_code"] = ["[__import__('os').system('touch CANARY')]"]


HOSTILE = {
    "sample_inputs": (as_inputs, "data/sample_inputs/model.pt is a pickle that runs code"),
    "use_pickle": (as_weight, r"weights: 'layer.bias' is stored as a pickle \(use_pickle\)"),
    "expression": (in_model(as_expression), r"the expression \"__import__\('os'\)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_runs_code_in_torch_is_refused_without_running_it(good, canary, name):
    change, told = HOSTILE[name]
    Path("evil.pt2").write_bytes(altered(good, change))
    with pytest.raises(ValueError, match=f"policy.path=evil.pt2: .*{told}"):
        Exported(4, 1, 2, path="evil.pt2")
    assert not canary.exists()
    with contextlib.suppress(Exception):  # it ran all the same
        torch.export.load("evil.pt2")
    assert canary.exists()  # so the archive is what it is taken for


def test_guards_which_torch_executes_are_left_out(good, canary):
    data = altered(good, in_model(as_guard))
    assert opened(data, ".pt2")(torch.zeros(3, 4), torch.zeros(3, 2, 1)).shape == (3, 2, 1)
    assert not canary.exists()
    Path("evil.pt2").write_bytes(data)
    torch.export.load("evil.pt2").module()(torch.zeros(3, 4), torch.zeros(3, 2, 1))
    assert canary.exists()


def renamed(old: str, new: str) -> Callable[[Records], None]:
    """A change of every text of the model that is `old`."""

    def act(records: Records) -> None:
        text = records[MODEL].decode()
        assert json.dumps(old) in text
        records[MODEL] = text.replace(json.dumps(old), json.dumps(new)).encode()

    return act


def in_spec(node: dict[str, Any]) -> None:
    signature = node["graph_module"]["module_call_graph"][0]["signature"]
    context = json.dumps(["x=print(1)"])
    signature["in_spec"] = signature["in_spec"].replace(json.dumps("[]"), json.dumps(context))


def empty(records: Records) -> None:
    config = json.loads(records[WEIGHTS])
    entry = config["config"]["layer.bias"]
    entry["tensor_meta"]["sizes"] = [{"as_int": 1 << 50}]
    records |= {WEIGHTS: json.dumps(config).encode(), f"data/weights/{entry['path_name']}": b""}


def add(name: str, content: bytes = b"0") -> Callable[[Records], None]:
    return lambda records: records.update({name: content})


TANH, ADD = "torch.ops.aten.tanh.default", "torch.ops.aten.add.Tensor"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (renamed("noise", "noise=print(1)"), "'noise=print"),  # an argument becomes source
        (in_model(in_spec), "'x=print"),
        (renamed(TANH, "torch.ops.aten.from_file.default"), "'torch.ops.aten.from_file.default'"),
        (renamed(TANH, "torch.hub.load"), "'torch.hub.load'"),
        (renamed(TANH, "torch.ops.higher_order.call_torchbind"), "call_torchbind"),
        (renamed(ADD, "_operator.methodcaller"), "'_operator.methodcaller'"),
        (renamed("gain", "it's"), '"it\'s"'),
        (empty, "'layer.bias' has no numbers"),
        (add("data/aotinductor/model/a.so"), "holds a native library"),
        (add("models/second.json", b"{}"), "holds several programs"),
        (lambda records: records.pop(WEIGHTS), "lacks data/weights/"),
        (add(MODEL, b"[" * 100_000), "is no JSON"),
    ],
)
def test_what_could_become_code_is_named(good, change, told):
    with pytest.raises(ValueError, match=told):
        prepared(altered(good, change), ".pt2")


def test_an_archive_that_unfolds_is_refused(good):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("hand/models/model.json", b" " * (8 << 20))
        archive.writestr("hand/version", b"3")
    with pytest.raises(ValueError, match="unfolds to more than it is"):
        prepared(buffer.getvalue(), ".pt2")


@pytest.mark.parametrize(
    "text", ["s0", "2*s0 + 1", "Symbol('s30', positive=True, integer=True)", "Max(1, s0 // 2)",
             "Mul(Integer(2), Symbol('s0', integer=True))", "Float('1.5', precision=53)", "s0**2",
             "Eq(Mod(s0, 2), 0)", "Pow(Symbol('s0'), Integer(-1))", "-int_oo"],
)  # fmt: skip
def test_sizes_as_torch_writes_them_are_arithmetic(text):
    refuse_expression(text, MODEL)


@pytest.mark.parametrize(
    "text", ["exit()", "s0.__class__", "[s0 for s0 in x]", "lambda: 0", "Symbol('a b')", "9**9**9",
             "Pow(9, Integer(99999999))", "f'{s0}'", "(s0 := 1)", "print", "s0[0]", "(" * 3000,
             "1 << 10**9", "Function('f')", "s0 if s0 else s0", ""],
)  # fmt: skip
def test_an_expression_that_is_more_than_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match="no arithmetic of sizes"):
        refuse_expression(text, MODEL)


# ---- TorchScript -----------------------------------------------------------------------------


class Writes(nn.Module):
    """Writes a file in every call."""

    def forward(self, obs, noise):
        return noise + torch.from_file("CANARY", True, 2).fill_(1.0)[0] + 0 * obs[:, None, :1]


class Endless(nn.Module):
    """Never answers."""

    def forward(self, obs, noise):
        x = 0
        while x >= 0:
            x = (x + 1) % 7
        return noise


def scripted(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_torchscript_that_writes_a_file_is_refused_in_its_source_and_in_its_graph(canary):
    data = scripted(Writes())
    with pytest.raises(ValueError, match=r"calls from_file\(...: a program reads no files"):
        prepared(data, ".pt")
    with pytest.raises(ValueError, match="method forward calls aten::from_file"):
        refuse_graph(torch.jit.load(io.BytesIO(data)))
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_a_program_that_never_answers_is_told_within_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "SECONDS", 2)
    (tmp_path / "endless.pt").write_bytes(scripted(Endless()))
    with pytest.raises(ValueError, match="endless.pt: its first call has not ended within 2 s"):
        Exported(4, 1, 2, path=str(tmp_path / "endless.pt"))


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_one_process_makes_the_first_calls_of_all_and_is_made_anew_where_it_is_gone(monkeypatch):
    monkeypatch.setattr(rehearsal, "known", {})
    data, sizes = scripted(Hand()), (4, 1, 2)
    assert rehearsal.rehearse(data, ".pt", sizes) is False
    first = rehearsal.stage.process
    with pytest.raises(ValueError, match=r"does not take obs \[2, 5\]"):
        rehearsal.rehearse(data, ".pt", (5, 1, 2))
    assert rehearsal.stage.process is first and first is not None and first.poll() is None
    first.kill()
    first.wait()
    monkeypatch.setattr(rehearsal, "known", {})
    assert rehearsal.rehearse(data, ".pt", sizes) is False
    assert rehearsal.stage.process is not first
    rehearsal.stage.end()
    assert rehearsal.stage.process is None


# ---- files -----------------------------------------------------------------------------------


def test_a_file_that_was_changed_is_refused_by_name(good, tmp_path):
    (tmp_path / "hand.pt2").write_bytes(good.read_bytes())
    with pytest.raises(ValueError, match=r"hand.pt2: another program than the run's \(sha256 "):
        Exported(4, 1, 2, path=str(tmp_path / "hand.pt2"), sha256="0" * 64)


def written(path: Path, module: nn.Module) -> bytes:
    """A module as ONNX, for any number of rows."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    given, dim = (torch.zeros(2, 4), torch.zeros(2, 2, 1)), {0: torch.export.Dim("rows")}
    torch.onnx.export(
        module, given, path, dynamo=True, dynamic_shapes=(dim, dim), external_data=False,
        verbose=False,
    )  # fmt: skip
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_acts_as_the_module_it_was_made_from_and_names_no_other_file(tmp_path):
    hand, obs, noise = Hand(), torch.randn(5, 4), torch.randn(5, 2, 1)
    data = written(tmp_path / "hand.onnx", hand)
    base = Exported(4, 1, 2, path=str(tmp_path / "hand.onnx"))
    torch.testing.assert_close(base.act(obs, noise), hand(obs, noise), rtol=0, atol=1e-6)
    model: Any = pytest.importorskip("onnx").load_model_from_string(data)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../../etc/passwd")
    with pytest.raises(ValueError, match="its numbers lie in another file"):
        prepared(model.SerializeToString(), ".onnx")
    with pytest.raises(ValueError, match="cannot be read as an exported program"):
        prepared(b"\xff" + data, ".onnx")


def test_onnx_without_its_packages_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda: prepared(b"", ".onnx"), lambda: Onnx(b"")):
        with pytest.raises(RheoError, match=r"an .onnx needs onnx.*: pip install 'rheo-rl\[onnx\]"):
            call()
