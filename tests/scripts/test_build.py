"""Building objects from nodes: the signature is the schema, the allow-list is the fence."""

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from rheo.errors import RheoError
from rheo.scripts.config import schema
from rheo.scripts.config.build import build

LAB = """
import os
from dataclasses import KW_ONLY, dataclass, field
from PARTS import Kind, Shared


class Part:
    def __init__(self, obs_dim: int, *, width: int):
        self.obs_dim, self.width = obs_dim, width


class Whole:
    def __init__(self, part: Part, generator, *, lr: float, kind: Kind, sizes: list[int],
                 clip: float | None, spare: int = 7):
        self.part, self.generator, self.lr, self.kind = part, generator, lr, kind
        self.sizes, self.clip, self.spare = sizes, clip, spare


class Heir(Whole):
    pass


class Passing(Whole):
    def __init__(self, part: Part, generator, *, depth: int, **kept):
        super().__init__(part, generator, clip=None, **kept)
        self.depth = depth


@dataclass(kw_only=True)
class Record:
    size: int
    name: str = "x"


@dataclass
class Owner:
    record: Record


@dataclass
class Keeper(Owner):
    _: KW_ONLY
    place: Kind
    rate: float
    spare: int | None
    count: int = field(default=3, init=False)


@dataclass
class Borrower(Keeper, Shared):
    _: KW_ONLY
    rate: float


def opened(id: str = "", *, count: int, **options):
    return count, options


_hidden = Part
"""
PARTS = """
from dataclasses import KW_ONLY, dataclass
from typing import Literal

Kind = Literal["a", "b"]


@dataclass
class Shared:
    generator: object
    _: KW_ONLY
    rate: int
    kind: Kind
    count: int
"""
VALUES: dict[str, Any] = {"lr": 1, "kind": "a", "sizes": [1, 2], "clip": None}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in a folder named with --config-dir; its name is new for every test."""
    name = f"lab_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(LAB.replace("PARTS", f"{name}_parts"))
    (tmp_path / f"{name}_parts.py").write_text(PARTS)
    monkeypatch.setattr(schema, "allowed", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    schema.allow([tmp_path])
    return name


def whole(lab: str, **values: Any) -> dict[str, Any]:
    part = {"_target_": f"{lab}.Part", "width": 4}
    return {"_target_": f"{lab}.Whole", "part": part, **VALUES, **values}


def test_values_given_objects_and_nested_nodes_reach_the_constructor(lab: str) -> None:
    made = build(whole(lab), key="algo", obs_dim=5, generator="g", unrelated=1)
    assert (made.part.obs_dim, made.part.width, made.generator) == (5, 4, "g")
    assert (made.lr, made.kind, made.sizes, made.clip, made.spare) == (1.0, "a", [1, 2], None, 7)
    assert type(made.lr) is float


def test_every_wrong_key_is_named_in_full_at_once(lab: str) -> None:
    node = whole(lab, lr="1e-3", klip=0.2, kind="c")
    del node["sizes"]
    with pytest.raises(RheoError) as caught:
        build(node, key="algo", obs_dim=5, generator=None)
    text = str(caught.value)
    assert "algo.lr: must be float, got '1e-3' (str)" in text
    assert "algo.klip: unknown key; did you mean 'clip'?" in text
    assert "algo.kind: must be" in text and "algo.sizes: missing" in text
    assert caught.value.code == 2


def test_a_constructor_that_passes_keys_on_has_those_of_its_base_but_what_it_gives(
    lab: str,
) -> None:
    node = {**whole(lab, depth=2), "_target_": f"{lab}.Passing"}
    del node["clip"]
    made = build(node, key="algo", obs_dim=5, generator="g")
    assert (made.depth, made.lr, made.clip, made.part.width) == (2, 1.0, None, 4)
    with pytest.raises(RheoError) as caught:
        build({**node, "clip": 0.1, "lr": "x"}, key="algo", obs_dim=5, generator="g")
    assert "algo.clip: unknown key" in str(caught.value)
    assert "algo.lr: must be float" in str(caught.value)


def test_a_nested_node_is_checked_under_its_own_key(lab: str) -> None:
    node = whole(lab, part={"_target_": f"{lab}.Part", "width": 1.5})
    with pytest.raises(RheoError, match=r"algo\.part\.width: must be int"):
        build(node, key="algo", obs_dim=1, generator=None)


def test_what_the_run_gives_cannot_be_set(lab: str) -> None:
    node = {"_target_": f"{lab}.Part", "width": 1, "obs_dim": 3}
    with pytest.raises(RheoError, match="obs_dim: is given by the run"):
        build(node, obs_dim=5)


def test_a_forgotten_object_is_the_programs_fault_not_the_users(lab: str) -> None:
    with pytest.raises(TypeError, match="has to give .* its generator"):
        build(whole(lab), obs_dim=1)


def test_open_signatures_pass_other_keys_on_and_dataclasses_have_schemas(lab: str) -> None:
    assert build({"_target_": f"{lab}.opened", "count": 1, "x": 2}) == (1, {"x": 2})
    record = build({"_target_": f"{lab}.Record", "size": 3})
    assert (record.size, record.name) == (3, "x")
    with pytest.raises(RheoError, match="size: must be int"):
        build({"_target_": f"{lab}.Record", "size": "3"})


@pytest.mark.parametrize(
    "name", ["Whole", "Heir", "Part", "Record", "Keeper", "Borrower", "opened"]
)
def test_the_schema_read_from_source_is_that_of_the_object(lab: str, name: str) -> None:
    static = schema.from_source(f"{lab}.{name}")
    live = inspect.signature(getattr(__import__(lab), name)).parameters
    plain = {key: one for key, one in live.items() if one.kind is not one.VAR_KEYWORD}
    bare = {key for key, one in plain.items() if one.default is one.empty}
    assert {*static.keys, *static.slots} == set(plain) and static.open == (plain != dict(live))
    assert static.required | {key for key, needed in static.slots.items() if needed} == bare
    assert all(live[key].kind is inspect.Parameter.KEYWORD_ONLY for key in static.keys)
    assert len(static.keys) > 0
    assert static.keys.get("kind") in (None, "Literal['a', 'b']")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "rheo.scripts.cli.main",
        "rheo.scripts.store.provenance.git",
        "rheo.envs.suites.importlib.import_module",
        "rheo.algos.bc.torch",
        "rheo.algos.bc.step",
        "rheo.algos.nothing.X",
        "rheo..system",
        "../evil.X",
        "rheo.algos...scripts.cli.main",
        "LAB.os",
        "LAB.os.system",
        "LAB._hidden",
        "LAB.Kind",
        "LAB",
        "",
        None,
        3,
    ],
)
def test_only_what_a_permitted_module_defines_is_called(lab: str, target: Any) -> None:
    target = target.replace("LAB", lab) if isinstance(target, str) else target
    with pytest.raises(RheoError, match=r"algo\._target_: "):
        build({"_target_": target, "command": "exit 1"}, key="algo")
    with pytest.raises(RheoError):
        schema.from_source(target)


def test_a_module_outside_the_folder_is_not_reached_through_a_link(
    lab: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "evil.py"
    outside.write_text("def run(): return 1\n")
    (tmp_path / "evil.py").symlink_to(outside)
    with pytest.raises(RheoError, match="no such module"):
        build({"_target_": "evil.run"})


def test_a_file_that_shares_its_name_with_an_installed_module_is_refused(
    lab: str, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("def dumps(): return 1\n")
    with pytest.raises(RheoError, match="another module of that name"):
        build({"_target_": "json.dumps"})
