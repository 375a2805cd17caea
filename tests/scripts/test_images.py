"""Runs that learn from images, whole: cloned, evaluated, resumed, and what they refuse."""

import json
import logging
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dots
import gymnasium
import numpy as np
import pytest
import torch
from shipped import ACTING, config, small, tunes

import rheo
from rheo.envs.data.read import read
from rheo.envs.pixels import unpacked
from rheo.envs.rollout import evaluate
from rheo.errors import RheoError
from rheo.scripts.assemble import Sizes, entered, fit_statistics, make_algo, make_env
from rheo.scripts.cli import main
from rheo.scripts.client import Refused
from rheo.scripts.config.serving import serve as asked
from rheo.scripts.config.top import EVAL_SEED
from rheo.scripts.evaluate import episodes_of
from rheo.scripts.evaluate import made as evaluate_made
from rheo.scripts.fast import fast_deploy
from rheo.scripts.rollout_policy import RolloutPolicy
from rheo.scripts.serve import beside, bound
from rheo.scripts.serve import made as served
from rheo.scripts.store.run import Run
from rheo.scripts.store.state import restore

dots.register()
HERE = ["env=gym", f"env.id={dots.NAME}"]
SEEN = f"source.obs_keys=[{','.join(dots.KEYS)}]"
SMALL = [
    *("policy.net.width=32", "policy.net.depth=1", "policy.steps=4", "eye.channels=8"),
    *("source.batch_size=32", "eye.shift=0", "episodes=4", "eval_every=100000"),
]


def told(run: str, key: str) -> list[float]:
    return [row[key] for row in Run.open(run).rows() if row.get(key) is not None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a clone of the demonstrations."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = dots.demos(folder / "dots.hdf5")
        words = ["train", "algo=bc", f"data={data}", SEEN, *HERE, *SMALL]
        assert main([*words, "steps=250", "name=base", "episodes=20", "algo.ema_rate=0.05"]) == 0
    return folder


def test_a_task_that_only_an_image_tells_is_cloned(base, monkeypatch, capsys) -> None:
    monkeypatch.chdir(base)
    before, after = told("base", "eval/success_once")
    assert before < 0.85 <= after  # by chance: 1 - (1 - 0.3)^4
    first, *_, last = told("base", "val/loss")
    assert last < first
    assert main(["eval", "runs/base", "episodes=4"]) == 0
    assert "success at any step" in capsys.readouterr().out


def test_its_program_takes_the_images_themselves(base, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(base)
    assert main(["export", "base", f"out={tmp_path / 'a.pt2'}"]) == 0  # which compares a hundred
    told = json.loads((tmp_path / "a.pt2.json").read_text())
    image = told["inputs"][-1]
    assert image["shape"] == [1, 1, 12, 12, 3] and image["dtype"] == "uint8"
    assert told["observation"]["images"] == {"front_image": [12, 12]}
    assert told["checked"]["inputs"] == 100 and told["checked"]["difference"] <= 1e-6


def test_the_run_knows_its_images(base, monkeypatch) -> None:
    monkeypatch.chdir(base)
    run = Run.open("base")
    tree: Any = run.load()
    assert tree["sizes"]["images"] == {"front_image": [12, 12]}
    assert run.meaning()["obs_images"] == {"front_image": [12, 12]}
    assert run.config["eye"]["_target_"].endswith("CNNEye")


@pytest.mark.parametrize("option", ["env.options.size=16", "env.options.cameras=2"])
def test_images_of_another_size_or_number_are_refused(base, monkeypatch, capsys, option) -> None:
    monkeypatch.chdir(base)
    assert main(["eval", "runs/base", option, "episodes=1"]) == 2
    err = capsys.readouterr().err
    told = err.splitlines()[-1]
    assert "with front_image (12 x 12)" in told and "choose an environment of these sizes" in told
    assert main(["train", "algo=reinflow", "init=base", *HERE, "name=tuned", option]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "init=base: its images are front_image (12 x 12) and here they are front" in told
    data = base / "dots.hdf5"
    words = ["train", "algo=bc", f"data={data}", SEEN, *HERE, *SMALL, "name=other", option]
    assert main(words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search("front_image has 144 numbers, and 256 there|sizes differ.*side_image", told)


def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path, monkeypatch) -> None:
    """Also its random shifts."""
    monkeypatch.chdir(tmp_path)
    data = dots.demos(tmp_path / "dots.hdf5", 6)
    words = ["train", "algo=bc", f"data={data}", SEEN, *SMALL, "eye.shift=2"]
    assert main([*words, "steps=8", "name=whole"]) == 0
    assert main([*words, "steps=8", "save_every=4", "name=half"]) == 0
    last = sorted((tmp_path / "runs" / "half" / "ckpt").iterdir())[-1]
    shutil.rmtree(last)
    assert main(["resume", "half"]) == 0
    one, two = (Run.open(name).load() for name in ("whole", "half"))
    assert one is not None and two is not None
    for part in ("policy", "average"):
        mine, theirs = one["algo"][part], two["algo"][part]
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_images_of_other_names_are_told(base, monkeypatch, capsys) -> None:
    monkeypatch.chdir(base)
    monkeypatch.setattr(dots, "NAMES", ["left_image", "side_image"])
    assert main(["eval", "runs/base", "episodes=1"]) == 0
    told = capsys.readouterr().err
    assert "images are left_image (12 x 12) here, and front_image (12 x 12) in runs/base" in told


def test_images_of_the_same_names_in_another_order_are_others() -> None:
    here = Sizes(10, 1, {"front": [2, 2], "side": [2, 2]})
    assert here.fits(here._replace(images={"front": [2, 2], "side": [2, 2]}))
    assert here.fits(here._replace(images={"left": [2, 2], "right": [2, 2]}))  # other names
    assert not here.fits(here._replace(images={"side": [2, 2], "front": [2, 2]}))
    assert not here.fits(here._replace(images={"front": [2, 2], "side": [1, 4]}))


PLANS = ("plan", "align")


@pytest.mark.parametrize("algo", PLANS)
def test_plans_are_of_states_and_no_images(algo: str) -> None:
    sizes = Sizes(2 + 64, 1, {"front_image": [8, 8]})
    with pytest.raises(RheoError, match="a plan is of states.*data.obs_keys.*algo=bc"):
        make_algo(config(algo), sizes, 10)


@pytest.mark.parametrize("algo", [name for name in ACTING if name not in PLANS])
def test_every_algorithm_has_an_eye_wherever_it_sees(algo: str) -> None:
    """Each network that takes observations has statistics of them, in whose place an eye stands."""
    cfg = config(algo)
    for node in nodes(cfg):
        small = {"width": 16, "depth": 1, "channels": 8, "gate": 0}
        node |= {key: value for key, value in small.items() if key in node}
    sizes = Sizes(2 + 64, 1, {"front_image": [8, 8]})
    made = make_algo(cfg, sizes, 10)
    networks = [p for p in vars(made).values() if isinstance(p, torch.nn.Module)]
    found: list[Any] = [getattr(part, "obs_norm", None) for part in networks]
    norms = [norm for norm in found if norm is not None]
    assert norms and all(norm.out_dim == 2 + 32 and norm.dim == 66 for norm in norms)
    state = torch.randn(50, 2)
    fit_statistics(made, state, torch.rand(50, 1))
    assert all(norm.ready for norm in norms)
    seen = torch.cat([torch.randn(3, 2), torch.randint(1 << 24, (3, 64)).float()], 1)
    if algo != "resip":  # which is shown what its base plans as well
        action = made.deploy(seen, torch.Generator().manual_seed(0))
        assert action.shape == (3, 1, 1) and action.isfinite().all()


def nodes(tree: Any) -> list[dict[str, Any]]:
    """Every mapping of a configuration."""
    if not isinstance(tree, dict):
        return []
    return [tree, *(one for value in tree.values() for one in nodes(value))]


def test_a_network_that_would_take_pixels_for_numbers_is_refused() -> None:
    cfg = config("bc")
    del cfg["policy"]["obs_norm"]
    with pytest.raises(RheoError, match="policy.net: MLP has no obs_norm, .*pixels of front_image"):
        make_algo(cfg, Sizes(66, 1, {"front_image": [8, 8]}), 10)


# ---- learning in the environment -----------------------------------------------------------------


def tune(algo: str, *words: str) -> list[str]:
    """The words of a small run of an algorithm in the task."""
    fixed = ("env", "horizon", "policy") if tunes(algo) else ("env", "horizon")  # by the base
    small_words = [word for word in small(algo) if not word.startswith(fixed)]
    start = ["init=base"] if tunes(algo) else ["eye.channels=8"]
    return ["train", f"algo={algo}", *start, *HERE, *small_words, "episodes=4", *words]


@pytest.mark.parametrize("algo", ["reinflow", "ppo", "resip"])
def test_on_policy_the_first_ratio_is_one_with_shifted_images(base, monkeypatch, algo) -> None:
    monkeypatch.chdir(base)
    words = tune(algo, "eye.shift=3", "env.num_envs=3", "steps=144", "log_every=48")
    assert main([*words, f"name=first-{algo}"]) == 0
    errors = told(f"first-{algo}", "policy/first_ratio_error")
    assert len(errors) >= 2 and max(errors) < 1e-5
    assert max(told(f"first-{algo}", "policy/minibatches")) > 1


@pytest.mark.parametrize("algo", ["dsrl_na", "resip", "reinflow"])
def test_with_a_frozen_eye_a_run_begins_as_its_base_and_learns_from_features(
    base, monkeypatch, algo
) -> None:
    """And goes on where it was stopped, and is evaluated anywhere."""
    monkeypatch.chdir(base)
    words = tune(algo, "eye.frozen=true", "steps=96", "save_every=48", "env.num_envs=3")
    assert main([*words, f"name=still-{algo}"]) == 0
    run = Run.open(f"still-{algo}")
    tree: Any = run.load()
    assert tree["sizes"] == {
        "obs_dim": 1 + 32, "action_dim": 1, "images": {"front_image": [12, 12]}, "obs_steps": 1,
    }  # fmt: skip
    mine, theirs = tree["algo"]["policy"], Run.open("base").load()
    assert theirs is not None
    nets = [key for key in mine if key.startswith("obs_norm.nets")]
    assert nets and all(torch.equal(mine[key], theirs["algo"]["average"][key]) for key in nets)
    if algo == "reinflow":  # which deploys its policy as the base does
        assert main(["eval", "runs/base", "episodes=4"]) == 0
        began = rows_of(run.path / "eval" / "000000000000.json")
        assert began == rows_of(base / "runs" / "base" / "eval" / "000000000250-4.json")
    before = rows_of(run.path / "eval" / f"{run.step:012d}.json")
    assert main(["eval", f"runs/still-{algo}", "episodes=4"]) == 0
    assert rows_of(next((run.path / "eval").glob("*-4.json"))) == before
    assert main(["resume", f"still-{algo}", "steps=144"]) == 0
    assert main(["collect", f"runs/still-{algo}", "episodes=1", "out=x.hdf5"]) == 2


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Episodes of an evaluation."""
    return json.loads(file.read_text())["episodes"]


def test_a_frozen_run_goes_on_to_the_last_bit(base, monkeypatch) -> None:
    monkeypatch.chdir(base)
    words = tune("expo", "eye.frozen=true", "save_every=30", "steps=60", "env.num_envs=2")
    assert main([*words, "name=whole"]) == 0 and main([*words, "name=half"]) == 0
    shutil.rmtree(sorted((base / "runs" / "half" / "ckpt").iterdir())[-1])
    assert main(["resume", "half"]) == 0
    one, two = (Run.open(name).load() for name in ("whole", "half"))
    assert one is not None and two is not None
    for part in ("policy", "critic", "editor"):
        mine, theirs = one["algo"][part], two["algo"][part]
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_recorded_images_are_encoded_once(base, monkeypatch, caplog) -> None:
    monkeypatch.chdir(base)
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    words = ["train", "algo=bc", "data=dots.hdf5", SEEN, *SMALL, "init=base", "eye.frozen=true"]
    with caplog.at_level(logging.INFO, "rheo"):
        assert main([*words, "steps=40", "name=more"]) == 0
    assert "its encoder is kept" in caplog.text
    first, *_, last = told("more", "val/loss")
    assert first == pytest.approx(told("base", "val/loss")[-1], rel=1e-4) and last < 1.5 * first
    assert main(["resume", "more", "steps=60"]) == 0


def test_both_ways_of_an_evaluation_are_the_same_to_the_last_bit(base, monkeypatch) -> None:
    monkeypatch.chdir(base)
    rows = []
    for still in (False, True):
        run = Run.open("base")
        run.config["eye"] = {**run.config["eye"], "frozen": still}
        tree: Any = run.load()
        sizes = Sizes(**tree["sizes"])
        width = 1 + 32 if still else sizes.obs_dim
        algo = make_algo(run.config, sizes._replace(obs_dim=width), 10)
        restore(algo, tree["algo"], generators=False)
        env = make_env(run.config, 5)
        assert env is not None and env.obs_dim == width
        rows.append(episodes_of(entered(algo, env, EVAL_SEED), algo, 11, "off"))
    assert rows[0] == rows[1] and len(rows[0]) == 11


def test_what_cannot_be_kept_is_refused(base, monkeypatch, capsys) -> None:
    monkeypatch.chdir(base)
    data = ["data=dots.hdf5", SEEN]
    assert main(["train", "algo=bc", *data, "eye.frozen=true"]) == 2
    assert "keeps the encoder of another run; add init=RUN" in capsys.readouterr().err
    assert main(["train", "algo=bc", "data=dots.hdf5", "name=tips", *SMALL, "steps=1"]) == 0
    assert "eye: not used, there are no images" in capsys.readouterr().err
    words = ["train", "algo=bc", "data=dots.hdf5", "init=tips", "eye.frozen=true", "steps=1"]
    assert main(words) == 2
    assert "there are no images among the observations" in capsys.readouterr().err
    for verb in ("eval", "resume"):
        assert main([verb, "runs/base", "eye.frozen=true"]) == 2
        told = capsys.readouterr().err
        assert "unknown option 'eye.frozen'" in told or "fixed by the checkpoint" in told
    assert main(["train", "algo=bc", *data, "init=base", "eye=vit", *SMALL[:3], "name=x"]) == 2
    assert "eye=" in capsys.readouterr().err


@pytest.mark.parametrize("still", [False, True])
def test_another_programs_rollouts_give_the_episodes_of_the_evaluation(
    base, monkeypatch, still
) -> None:
    """Shown images as they are, or as robomimic hands them on."""
    monkeypatch.chdir(base)
    if still:
        words = ["train", "algo=bc", "data=dots.hdf5", SEEN, *HERE, *SMALL, "init=base"]
        assert main([*words, "eye.frozen=true", "steps=2", "name=kept"]) == 0
    name = "kept" if still else "base"
    run = Run.open(name)
    algo, world = evaluate_made(run, 1)
    env = entered(algo, world, EVAL_SEED)
    rows = evaluate(env, fast_deploy(algo, run.config["fast"], 8), 3, EVAL_SEED)
    for processed in (False, True):
        policy, task, found = RolloutPolicy(name), gymnasium.make(dots.NAME), []
        for i in range(3):
            obs, _ = task.reset(seed=EVAL_SEED if i == 0 else None)
            policy.start_episode()
            total, over = 0.0, False
            while not over:
                if processed:
                    image = np.moveaxis(obs["front_image"], -1, 0).astype(np.float32) / 255
                    obs = {**obs, "front_image": image}
                obs, reward, _, over, _ = task.step(policy(obs).astype(np.float32))
                total += float(reward)
            found.append(total)
        assert found == [row.ret for row in rows]


def test_images_are_acted_on_through_a_server(base, monkeypatch) -> None:
    """As in this process, bit for bit; those of another size are refused by name."""
    monkeypatch.chdir(base)
    wanted, own = asked(["base", "port=0"]), rheo.load("base")
    task = gymnasium.make(dots.NAME)
    with ThreadPoolExecutor(1) as pool, bound(wanted) as sock:
        server = pool.submit(served, wanted, pool).result()
        with beside(server, sock) as url, rheo.Client(url) as policy:
            assert policy.about["observation"]["images"] == {"front_image": [12, 12, 3]}
            obs, _ = task.reset(seed=EVAL_SEED)
            for _ in range(3):
                action = policy.act(obs)
                assert action.shape == (1,) and np.array_equal(action, own.act(obs))
                obs = task.step(action.astype(np.float32))[0]
            with pytest.raises(Refused, match="front_image"):
                policy.act({**obs, "front_image": obs["front_image"][:6]})
            assert policy.act(obs).shape == (1,)


def test_images_are_written_in_robomimic_s_layout(base, monkeypatch) -> None:
    monkeypatch.chdir(base)
    words = ["data", "convert", "dots.hdf5", "again.h5", "--obs-keys", "front_image,tip"]
    assert main([*words, "layout=robomimic"]) == 0
    one, two = read("dots.hdf5", obs_keys=dots.KEYS), read("again.h5")
    assert two.images == {"front_image": [12, 12]} and two.about["format"] == "robomimic"
    np.testing.assert_array_equal(one.obs, two.obs)


def test_what_a_policy_of_images_did_is_recorded_with_them(base, monkeypatch) -> None:
    monkeypatch.chdir(base)
    assert main(["collect", "runs/base", "episodes=6", "out=again.hdf5"]) == 0
    recording = read("again.hdf5")
    assert recording.images == {"front_image": [12, 12]} and len(recording.ends) == 6
    front = unpacked(recording.obs[:, 1:], 12)
    assert set(np.unique(front[..., 0])) == {30, 250}
    words = ["train", "algo=iql", "data=again.hdf5", *small("iql"), "eye.channels=8", "name=iql"]
    assert main([*words, "steps=2"]) == 0
