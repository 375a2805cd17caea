"""Configurations: every mistake is named, at once, before torch is there."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from shipped import ALGOS, TASKS, needs, skip_where_it_cannot_run

from rheo.envs import packages
from rheo.errors import RheoError
from rheo.scripts.config import schema
from rheo.scripts.config.annotations import known
from rheo.scripts.config.build import target_of
from rheo.scripts.config.compose import HOME, compose, load, validate, walk
from rheo.scripts.store.versions import ADDED, MOVED, complete

GOOD = ["algo=rfm", "env=hopper"]
MODULE = """
class Mine:
    def __init__(self, policy, critic, generator, *, lr: float, mode: str):
        self.lr = lr
"""
FILE = """# @package _global_
defaults:
  - override /policy: gaussian
algo:
  _target_: NAME.Mine
  lr: 1.0e-3
  mode: fast
"""


def errors(*words: str) -> list[str]:
    """The lines of the message for a wrong configuration."""
    with pytest.raises(RheoError) as caught:
        compose(words)
    assert caught.value.code == 2
    lines = str(caught.value).splitlines()
    return [line.strip() for line in (lines[1:] if len(lines) > 1 else lines)]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A user's folder with an algorithm `mine`, and the name of its module."""
    name = f"lab_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "algo").mkdir()
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "algo" / "mine.yaml").write_text(FILE.replace("NAME", name))
    monkeypatch.setattr(schema, "allowed", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return tmp_path, name


def test_overrides_reach_their_places_in_the_declared_types() -> None:
    tree = compose([*GOOD, "steps=1e5", "algo.policy_lr=1", "policy.net.width=64", "seed=3"])
    assert tree["steps"] == 100_000 and type(tree["steps"]) is int
    assert tree["algo"]["policy_lr"] == 1.0 and type(tree["algo"]["policy_lr"]) is float
    assert tree["policy"]["net"]["width"] == 64 and tree["seed"] == 3
    assert tree["env"]["id"] == "Hopper-v5"


def test_all_mistakes_are_reported_at_once_with_the_nearest_name() -> None:
    found = errors("env=hoper", "stps=3", "seed=abc", "algo.particels=2", "policy.net.width=x")
    assert len(found) == 5
    assert "env=hoper: no such env; did you mean 'hopper'?" in found
    assert "stps: unknown key; did you mean 'steps'?" in found
    assert "seed: must be int, got 'abc' (str)" in found
    assert "algo.particels: unknown key; did you mean 'particles'?" in found
    assert "policy.net.width: must be int, got 'x' (str)" in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=rfm,sac"], "algo=rfm,sac: names several values"),
        (["steps"], "steps: not of the form key=value"),
        (["~seed"], "~seed: nothing can be removed"),
        (["~algo"], "~algo: nothing can be removed"),
        (["config_dir=[x]"], "name the folder with --config-dir"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: Hydra's own settings are fixed"),
        (["data.on_bad=drop"], "data.on_bad: algo=rfm reads no recorded data"),
        (["seed.path=3"], "seed.path=3: seed is not a group"),
        (["algo=null"], "algo: must be dict, got nothing"),
        (["nonsense/deep=1"], "nonsense/deep=1: unknown group"),
        (["+extra=1"], "extra: unknown key"),
        (["seed=-1"], "seed=-1: must be 0 or more"),
        (["steps=0"], "steps=0: must be at least 1"),
        (["log_every=0"], "log_every=0: must be at least 1"),
        (["steps=1.5"], "steps: must be int"),
        (["device=gpu"], "device='gpu': must be auto, cpu, cuda or cuda:N"),
        (["fast=quick"], "fast: must be"),
        (["algo.target_rate=2"], "algo.target_rate=2: must be above 0 and at most 1"),
        (["algo.policy_lr=0"], "algo.policy_lr=0: must be above 0"),
        (["source.n_step=0"], "source.n_step=0: must be at least 1"),
        (["algo=dsrl_na", "algo.distill_noises=0"], "algo.distill_noises=0: must be at least 1"),
        (["algo=expo", "algo.base_lr=-1"], "algo.base_lr=-1: must be 0 or more"),
        (["algo.replay_share=1.5"], "algo.replay_share=1.5: must be at least 0 and at most 1"),
        (["algo.max_norm=0"], "algo.max_norm=0: must be above 0"),
        (["algo=iql", "algo.expectile=1"], "algo.expectile=1: must be above 0 and below 1"),
        (["algo=dpmd", "algo.cap=0"], "algo.cap=0: must be above 0"),
        (["algo=dppo", "algo.deploy_floor=0"], "algo.deploy_floor=0: must be above 0"),
        (["policy/net=unet", "policy.net.widths=[8,0]"], "policy.net.widths=[8, 0]: must be at"),
        (["env.execute=0"], "env.execute=0: must be at least 1"),
        (["~log_every"], "~log_every: nothing can be removed; set another value, it is 1000"),
        (["env.execute=4"], "env.execute=4: more steps than the policy plans (horizon=1)"),
        (["policy.path=betas"], "policy.levels=None: policy.path=betas needs"),
        (["policy.path=betas", "policy.levels=3", "policy.steps=4"], "policy.steps=4: more than"),
        (["policy.betas=vp"], "policy.betas=vp: policy.path=linear has no table"),
        (["policy.betas=v"], "policy.betas"),
        (["policy.levels=3"], "policy.levels=3: policy.path=linear has no noise levels"),
        (["policy/net=transformer", "policy.net.heads=3"], "not a multiple of heads=3"),
        (["algo=plan", "policy.want=[]"], "policy.want=[]: source.labels=[return] has 1; give as"),
        (["env=gym"], "env.id: has to be set (env.id=...)"),
        (["env=gym", "env.id=Hoper-v5"], "env.id='Hoper-v5': no such environment; did you mean"),
        (["env=gym", "env.id=Hopper-v77"], "did you mean 'Hopper-v5'?"),
        (["env=null"], "env: has to be set (env=NAME)"),
        (["env=none"], "env: has to be set (env=NAME)"),
        (["data=/no/such/file"], "data='/no/such/file': no such file"),
        (["init=no_such_run"], "init='no_such_run': no such run"),
        (["name="], "name=: nothing follows the sign"),
    ],
)
def test_a_mistake_has_a_message_of_its_own(words: list[str], message: str) -> None:
    found = errors(*GOOD, *words)
    assert any(message in line for line in found), found


def test_a_backend_without_its_package_is_refused_before_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = {"warp": (("no_such_module_anywhere",), "'rheo-rl[warp]'", (3, 0))}
    monkeypatch.setattr(packages, "ENGINES", missing)
    (found,) = errors(*GOOD, "env.backend=warp")
    assert "env.backend=warp needs a package that is missing" in found
    assert found.endswith("'rheo-rl[warp]'")


def test_the_base_of_an_edit_policy_may_rest() -> None:
    words = [*GOOD, "algo=expo", "init=scratch", "algo.base_lr=0"]
    assert compose(words)["algo"]["base_lr"] == 0


def test_cloning_without_data_says_which_key_to_set() -> None:
    assert errors("algo=bc")[0].startswith("data: has to be set (data=FILE): algo=bc reads it")


@pytest.mark.parametrize(
    "words",
    [
        ["name=${oc.env:HOME}"],
        ["name='${oc.env:HOME}'"],
        ["env.options={a: '${oc.env:HOME}'}"],
        ["name='${a.${oc.env:HOME}}'"],
        ["name='${eval:1}'"],
        ["algo._target_=os.system"],
        ["policy.net._target_=subprocess.Popen"],
        ["algo._target_=rheo.scripts.cli.main"],
        ["env.id=os:Foo-v0"],
    ],
)
def test_a_configuration_is_data_and_never_code(words: list[str]) -> None:
    found = errors(*GOOD, *words)
    assert any("not evaluated" in line or "no such module" in line for line in found), found
    home = str(Path.home())
    assert not any(home in line for line in found)


def test_python_objects_in_yaml_are_refused(lab: tuple[Path, str]) -> None:
    folder, _ = lab
    bomb = "# @package _global_\nalgo: !!python/object/apply:os.system ['touch BOMB']\n"
    (folder / "algo" / "bomb.yaml").write_text(bomb)
    with pytest.raises(RheoError, match="could not determine a constructor"):
        compose(["algo=bomb", "--config-dir", str(folder)])


def test_resolvers_in_a_file_are_not_evaluated(lab: tuple[Path, str]) -> None:
    folder, _ = lab
    file = folder / "algo" / "mine.yaml"
    file.write_text(file.read_text().replace("fast", "${oc.env:HOME}"))
    with pytest.raises(RheoError, match=r"mine.yaml, line \d+: resolvers are not evaluated; write"):
        compose(["algo=mine", f"--config-dir={folder}"])


def test_a_folder_of_the_user_adds_files_and_classes(lab: tuple[Path, str]) -> None:
    folder, name = lab
    tree = compose(["algo=mine", f"--config-dir={folder}", "algo.lr=2"])
    assert tree["algo"] == {"_target_": f"{name}.Mine", "lr": 2.0, "mode": "fast"}
    assert tree["policy"]["_target_"].endswith("TanhGaussian")
    assert tree["config_dir"] == [str(folder)]
    assert target_of(tree["algo"]).__name__ == "Mine"
    found = errors("algo=mine", f"--config-dir={folder}", "algo.mdoe=x")
    assert found == ["algo.mdoe: unknown key; did you mean 'mode'?"]


def test_a_key_of_a_users_file_that_nothing_reads_is_said(
    lab: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = lab
    (folder / "algo" / "ours.yaml").write_text(
        "# @package _global_\ndefaults: [sac, _self_]\nlog_evrey: 5\nmine: 0.01\n"
        "algo: {policy_lr: '${mine}'}\n"
    )
    tree = compose(["algo=ours", "env=inverted_pendulum", f"--config-dir={folder}"])
    assert tree["algo"]["policy_lr"] == 0.01
    said = "log_evrey: nothing reads this key; did you mean 'log_every'?"
    assert caplog.messages == [said]


def test_the_ranges_of_a_users_class_are_those_of_its_annotations(lab: tuple[Path, str]) -> None:
    """Named as rheo names them, or made of a Range; a plain int is any."""
    folder, name = lab
    head = "from typing import Annotated\n\nfrom rheo.ranges import Count, Range\n\n"
    half = "Half = Annotated[float, Range(ge=0, lt=0.5)]\n\n\n"
    keys = "members: Count | None, sizes: list[Count], half: Half, depth: int"
    body = f"class Mine:\n    def __init__(self, policy, *, {keys}):\n        pass\n"
    (folder / f"{name}.py").write_text(head + half + body)
    file = folder / "algo" / "mine.yaml"
    values = "  members: null\n  sizes: [1, 2]\n  half: 0\n  depth: -3\n"
    file.write_text(file.read_text().split("  lr:")[0] + values)
    words = ["algo=mine", f"--config-dir={folder}"]
    assert compose(words)["algo"]["depth"] == -3
    found = errors(*words, "algo.members=0", "algo.sizes=[1,0]", "algo.half=1", "algo.depth=0.5")
    assert found == [
        "algo.members=0: must be at least 1",
        "algo.sizes=[1, 0]: must be at least 1",
        "algo.half=1: must be at least 0 and below 0.5",
        "algo.depth: must be int, got 0.5 (float)",
    ]


def test_a_missing_value_in_a_users_file_is_named(lab: tuple[Path, str]) -> None:
    folder, _ = lab
    file = folder / "algo" / "mine.yaml"
    file.write_text(file.read_text().replace("  lr: 1.0e-3\n", "").replace("fast", "???"))
    found = errors("algo=mine", f"--config-dir={folder}")
    assert len(found) == 2
    assert found[0] == "algo.mode: has to be set (algo.mode=...)"
    assert found[1].startswith("algo.lr: missing")


def test_a_users_file_that_ours_would_hide_is_refused(lab: tuple[Path, str]) -> None:
    folder, _ = lab
    (folder / "algo" / "rfm.yaml").write_text("x: 1\n")
    assert "rename yours" in errors(f"--config-dir={folder}")[0]


def test_broken_yaml_is_an_error_of_the_user(lab: tuple[Path, str]) -> None:
    folder, _ = lab
    (folder / "algo" / "mine.yaml").write_text("algo: [1, 2\n")
    found = errors("algo=mine", f"--config-dir={folder}")
    assert len(found) == 1 and "a YAML file is broken" in found[0] and "mine.yaml" in found[0]


@pytest.mark.parametrize(
    ("flag", "message"), [("--foo", "unknown flag"), ("--config-dir", "needs a folder")]
)
def test_unknown_flags_are_refused(flag: str, message: str) -> None:
    assert message in errors(flag)[0]


def test_a_stored_configuration_is_read_back_and_checked_anew(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    tree = compose(GOOD)
    OmegaConf.save(OmegaConf.create(tree), tmp_path / "config.yaml")
    assert load(tmp_path) == tree
    assert load(tmp_path, ["episodes=77"])["episodes"] == 77
    with pytest.raises(RheoError, match="a run's algo is fixed"):
        load(tmp_path, ["algo=sac"])
    tree["algo"]["_target_"] = "os.system"
    OmegaConf.save(OmegaConf.create(tree), tmp_path / "config.yaml")
    with pytest.raises(RheoError, match="algo._target_"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"), [("env", "hopper"), ("config_dir", 5), ("tracker", [1]), ("source", True)]
)
def test_a_node_of_a_run_that_is_none_is_named(tmp_path: Path, key: str, value: object) -> None:
    from omegaconf import OmegaConf

    OmegaConf.save(OmegaConf.create({**compose(GOOD), key: value}), tmp_path / "config.yaml")
    with pytest.raises(RheoError, match=f"config.yaml: {key}: must be .* got "):
        load(tmp_path, ["tracker=none"])


@pytest.mark.parametrize(
    ("words", "place"),
    [
        *((f"algo={name} init=scratch", "algo") for name in ("awm_q", "dsrl_na", "expo")),
        ("algo=sac", "source"),
    ],
)
def test_a_run_of_before_a_key_does_what_it_did(tmp_path: Path, words: str, place: str) -> None:
    from omegaconf import OmegaConf

    tree = compose([*words.split(), "env=hopper"])
    node = tree[place]
    added = ADDED[node["_target_"]]
    assert added and added.keys() <= node.keys()
    for key in added:
        del node[key]
    OmegaConf.save(OmegaConf.create(tree), tmp_path / "config.yaml")
    assert load(tmp_path)[place] == node | added


@pytest.mark.parametrize("before", sorted(MOVED))
def test_a_class_that_older_runs_name_elsewhere_is_found_today(before: str) -> None:
    tree = {"algo": {"part": {"_target_": before}}}
    complete(tree)
    part = tree["algo"]["part"]
    assert part["_target_"] == MOVED[before] and callable(target_of(part, ""))
    assert part.keys() >= ADDED.get(MOVED[before], {}).keys()
    with pytest.raises(RheoError, match="no such (module|class)"):
        target_of({"_target_": before}, "")


@pytest.mark.parametrize("target", sorted(ADDED))
def test_what_older_runs_lack_is_a_key_of_today(target: str) -> None:
    parameters = inspect.signature(target_of({"_target_": target}, "")).parameters
    assert ADDED[target].keys() <= parameters.keys()


def test_a_run_never_chooses_by_itself_whose_code_is_imported(
    lab: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from omegaconf import OmegaConf

    folder, _ = lab
    tree = compose(["algo=mine", f"--config-dir={folder}"])
    run = tmp_path_factory.mktemp("run")
    OmegaConf.save(OmegaConf.create(tree), run / "config.yaml")
    schema.allowed.clear()
    with pytest.raises(RheoError, match="if you trust them, add --config-dir"):
        load(run)
    assert load(run, [f"--config-dir={folder}"]) == tree
    moved = folder.with_name("moved")
    folder.rename(moved)
    schema.allowed.clear()
    assert load(run, [f"--config-dir={moved}"])["config_dir"] == [str(moved)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small recording."""
    return recorded(tmp_path, "data.hdf5", (11, 3))


@pytest.mark.parametrize("algo", ALGOS)
def test_every_shipped_algorithm_has_a_complete_configuration(algo: str, data: Path) -> None:
    tree = compose([*needs(algo, data), "env=hopper"])
    for node in nodes(tree):
        wanted = schema.from_source(node["_target_"])
        assert set(wanted.keys) >= set(node) - {"_target_"} - set(wanted.slots)


@pytest.mark.parametrize("env", TASKS)
def test_every_shipped_environment_composes(env: str) -> None:
    skip_where_it_cannot_run(env)
    tree = compose(["algo=sac", f"env={env}"])
    assert tree["env"]["id"]


@pytest.mark.parametrize("net", sorted(f.stem for f in (HOME / "policy" / "net").glob("*.yaml")))
def test_every_shipped_network_composes(net: str) -> None:
    assert compose(["algo=rfm", "env=hopper", f"policy/net={net}"])["policy"]["net"]


@pytest.mark.parametrize("recipe", sorted(f.stem for f in (HOME / "recipe").glob("*.yaml")))
def test_every_shipped_recipe_composes(recipe: str, data: Path) -> None:
    kind = recipe.rpartition("_")[2]
    named = {"demo": [], "clone": [f"data={data}"], "ddrl": ["init=scratch", f"data={data}"]}
    more = named.get(kind, ["init=scratch"])
    assert compose([f"recipe={recipe}", *more])["algo"]


@pytest.mark.parametrize("algo", ALGOS)
def test_hyper_parameters_have_yaml_types_and_no_defaults(algo: str, data: Path) -> None:
    node = compose([*needs(algo, data), "env=hopper"])["algo"]
    wanted = schema.from_source(node["_target_"])
    assert wanted.required == set(wanted.keys)
    assert all(known(annotation) for annotation in wanted.keys.values())


def recorded(folder: Path, name: str, sizes: tuple[int, int], **attributes: str) -> Path:
    """A small HDF5 file in D4RL's layout."""
    file = folder / name
    with h5py.File(file, "w") as data:
        data["observations"], data["actions"] = (np.zeros((4, size)) for size in sizes)
        data["rewards"], data["terminals"] = np.zeros(4), np.array([0, 1, 0, 1], bool)
        data.attrs.update(attributes)
    return file


@pytest.mark.parametrize(
    ("name", "sizes", "attributes", "env_id"),
    [
        ("hopper_medium-v2.hdf5", (11, 3), {}, "Hopper-v4"),
        ("walker2d_medium_expert-v2.hdf5", (17, 6), {}, "Walker2d-v4"),
        ("mine.hdf5", (17, 6), {"env_id": "HalfCheetah-v4"}, "HalfCheetah-v4"),
        ("mine.hdf5", (17, 6), {"env_id": "Elsewhere-v0"}, None),
        ("mine.hdf5", (17, 6), {}, None),
        ("hopper_v5_mine.hdf5", (11, 3), {}, None),
        ("walker2d-v5-expert.hdf5", (17, 6), {}, None),
        ("door_opening_ur5.hdf5", (39, 28), {}, None),
        ("Ant_maze_u-maze_noisy_multistart_True_sparse_fixed.hdf5", (27, 8), {}, None),
        ("hopper_medium-v2.hdf5", (12, 3), {}, None),
        ("ant_medium-v2.hdf5", (111, 8), {}, None),
        ("mine.hdf5", (29, 8), {"env_id": "Ant-v4"}, None),
    ],
)
def test_data_choose_the_environment_they_were_recorded_in(
    tmp_path: Path,
    name: str,
    sizes: tuple[int, int],
    attributes: dict[str, str],
    env_id: str | None,
) -> None:
    file = recorded(tmp_path, name, sizes, **attributes)
    assert compose(["algo=bc", f"data={file}"])["env"]["id"] == env_id
    assert compose(["algo=bc", f"data={file}", "env=hopper"])["env"]["id"] == "Hopper-v5"
    assert compose(["algo=bc", f"data={file}", "env=null"])["env"]["id"] is None


def test_settings_of_the_data_are_keys_of_the_part_that_reads_them(data: Path) -> None:
    tree = compose(["algo=bc", f"data={data}", "data.on_bad=drop", "data.storage=mmap"])
    assert (tree["source"]["on_bad"], tree["source"]["storage"]) == ("drop", "mmap")
    assert tree["data"] == str(data)
    mixed = compose([*GOOD, "source=mixed", f"data={data}", "data.on_bad=drop"])
    assert mixed["source"]["dataset"]["on_bad"] == "drop"


def test_a_known_data_set_is_found_where_d4rl_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    missing = errors("algo=bc", "data=hopper-medium-v2")
    assert len(missing) == 1 and "run `rheo data fetch hopper-medium-v2`" in missing[0]
    recorded(tmp_path, "hopper_medium-v2.hdf5", (11, 3))
    assert compose(["algo=bc", "data=hopper-medium-v2"])["env"]["id"] == "Hopper-v4"


def nodes(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes with a target."""
    found = [tree] if tree.get("_target_") else []
    return found + [n for value in tree.values() if isinstance(value, dict) for n in nodes(value)]


def test_validation_finds_nothing_wrong_in_a_composed_tree_twice() -> None:
    tree = compose(GOOD)
    assert validate(tree) == [] and validate(tree) == []
    assert not [place for place, leaf in walk(tree) if leaf == "???"]


PROBE = """
import json, sys
from rheo.scripts.config.compose import compose
from rheo.errors import RheoError
count = 0
for words in json.loads(sys.argv[1]):
    try:
        compose(words)
    except RheoError:
        count += 1
heavy = [name for name in ("torch", "mujoco", "matplotlib", "scipy") if name in sys.modules]
print(json.dumps([count, heavy]))
"""


def test_configurations_are_checked_without_torch_or_a_simulator() -> None:
    cases = [GOOD, ["algo=rfx"], [*GOOD, "seed=x"], [*GOOD, "env.execute=9"], ["recipe=demo"]]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(cases)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [3, []]


def test_a_run_from_before_the_unit_of_actions_reads_them_as_it_did(
    tmp_path: Path, data: Path
) -> None:
    from omegaconf import OmegaConf

    for algo in ("bc", "iql"):
        tree = compose([f"algo={algo}", f"data={data}"])
        assert tree["source"].pop("action_scale") == "auto"
        OmegaConf.save(OmegaConf.create(tree), tmp_path / "config.yaml")
        assert load(tmp_path)["source"]["action_scale"] == "recorded"


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("signal.grace=-1", "signal.grace=-1: must be seconds; 0 or null waits for ever"),
        ("signal.grace=soon", "signal.grace=soon: must be seconds"),
        ("signal.grave=3", "signal.grave"),
    ],
)
def test_the_time_that_a_stuck_run_has_is_seconds(word: str, answer: str) -> None:
    assert compose(["algo=sac"])["signal"] == {"grace": 30}
    for held in ("null", "0", "2.5"):
        assert "grace" in compose(["algo=sac", f"signal.grace={held}"])["signal"]
    with pytest.raises(RheoError, match=re.escape(answer)):
        compose(["algo=sac", word])
