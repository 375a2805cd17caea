"""`rheo eval`: the same numbers as during training, from the run folder alone."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from rheo.envs.rollout import Episode
from rheo.errors import RheoError
from rheo.policies.normalize import Normalizer
from rheo.scripts.assemble import revived
from rheo.scripts.cli import main
from rheo.scripts.config.verbs import References
from rheo.scripts.config.verbs import evaluate as asked
from rheo.scripts.evaluate import Watched, known_references, report, score
from rheo.scripts.store.run import Run


def last_evaluation(name):
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "eval/return" in row][-1]


@pytest.mark.parametrize(("algo", "episodes"), [("rfm", 3), ("sac", 3), ("rfm", 9)])
@pytest.mark.parametrize("fast", ["precision", "off"])
def test_an_evaluation_equals_the_one_during_training(tiny, algo, episodes, fast):
    """To the last bit and for every episode; nine episodes use the faster product."""
    words = tiny(algo, "r", f"episodes={episodes}", "steps=120", f"fast={fast}")
    assert main(["train", *words]) == 0
    torch.set_flush_denormal(False)
    assert main(["eval", "r", f"episodes={episodes}"]) == 0
    during = json.loads(Path(f"runs/r/eval/{120:012d}.json").read_text())
    after = json.loads(Path(f"runs/r/eval/{120:012d}-{episodes}.json").read_text())
    assert len(after["episodes"]) == episodes and during["episodes"] == after["episodes"]
    row = last_evaluation("r")
    figures = {name for name in row if name.startswith("eval/")}
    assert figures and all(after[name] == row[name] for name in figures)


def test_the_report_names_the_run_the_task_and_the_interval(tiny, capsys):
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    shutil.move("runs/r", "moved")  # the folder knows everything, wherever it is
    capsys.readouterr()
    assert main(["eval", "moved", "episodes=4"]) == 0
    out = capsys.readouterr().out
    assert "moved, step 60, InvertedPendulum-v5, 4 episodes" in out
    assert "95 % interval [" in out and "length " in out
    assert f"episodes in moved/eval/{60:012d}-4.json" in out


@pytest.mark.parametrize("kind", ["gaussian", "minmax"])
def test_observations_far_from_the_data_are_reported(kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("rheo"), "propagate", True)
    norm, generator = Normalizer(2, kind=kind), torch.Generator()
    norm.fit(torch.tensor([[-1.0, -1e-2], [1.0, 1e-2]]))
    policy = Watched(lambda obs, _: obs, norm)
    policy(torch.tensor([[-9.0, 0.09, 7.0]]), generator)  # a third number is not the policy's
    policy.tell()
    assert caplog.text == ""
    obs = torch.tensor([[0.0, 0.0], [0.0, -2.5]])
    assert torch.equal(policy(obs, generator), obs)
    policy.tell()
    assert "observations lie up to 250 " in caplog.text and "(dimensions [1])" in caplog.text
    assert "beyond 10 all count as 10" in caplog.text


def test_no_network_of_a_run_looks_further_than_the_reach_and_actions_have_none(tiny):
    """Far outside its demonstrations weighted matching met gradients of a billion."""
    assert main(["train", *tiny("dql", "r", "steps=4", "eval_every=1000")]) == 0
    algo, _ = revived(Run.open("r"))
    norms = [algo.policy.obs_norm, algo.critic.obs_norm]
    assert [norm.reach for norm in norms] == [10.0, 10.0]
    assert algo.policy.action_norm.reach == float("inf")
    obs = norms[0].shift + norms[0].scale * torch.tensor([[1e4, 0.0, 0.0]])
    nearer = norms[0].shift + norms[0].scale * torch.tensor([[25.0, 0.0, 0.0]])
    noise = algo.policy.noise(1, algo.generator)
    assert torch.equal(algo.policy.act(obs, noise), algo.policy.act(nearer, noise))


def test_an_evaluation_says_that_its_world_is_another_one_than_the_datas(tiny, tmp_path, capsys):
    words = tiny("bc", "near", "env=inverted_pendulum", "steps=4", "eval_every=1000")
    rows = np.random.default_rng(0).normal(size=(104, 4))
    for name, scale in (("far", 1e-5), ("near", 1.0)):
        obs = rows * [1, 1, scale, 1]
        actions, ends = rows[:, :1].clip(-1, 1), [30, 60, 104]
        np.savez(tmp_path / f"{name}.npz", observations=obs, actions=actions, episode_ends=ends)
        assert main(["train", *words, f"data={tmp_path / name}.npz", f"name={name}"]) == 0
        said = "observations lie up to" in capsys.readouterr().err
        assert said == (name == "far")


def test_a_choice_among_samples_is_reported_with_and_without(tiny, capsys):
    assert main(["train", *tiny("rfm", "r", "steps=60", "algo.deploy_candidates=4")]) == 0
    capsys.readouterr()
    assert main(["eval", "r", "episodes=3"]) == 0
    printed = capsys.readouterr().out
    assert "best of 4 samples; with one sample: return" in printed
    assert main(["eval", "r", "episodes=3", "algo.deploy_candidates=1", "policy.steps=3"]) == 0
    assert "best of" not in capsys.readouterr().out
    both = json.loads(Path(f"runs/r/eval/{60:012d}-3.json").read_text())
    one = json.loads(Path(f"runs/r/eval/{60:012d}-3-deploy_candidates=1-steps=3.json").read_text())
    assert both["candidates"] == 4 and "single/return" in both
    assert one["changed"] == ["algo.deploy_candidates=1", "policy.steps=3"]
    assert main(["eval", "r", "algo.particles=3"]) == 2
    assert "unknown option 'algo.particles'" in capsys.readouterr().err


def test_a_chunk_can_be_cut_short(tiny, episodes, tmp_path, capsys):
    """Replanning after fewer steps is that of a run with the same weights that always did so."""
    words = ["steps=20", "horizon=4", "env=inverted_pendulum"]
    for name, execute in (("every", 1), ("whole", 4)):
        run = tiny("bc", name, *words, f"env.execute={execute}")
        episodes(tmp_path / "data.npz", [30, 30], obs_dim=4, action_dim=1)
        assert main(["train", *run]) == 0
    for name, *change in (("every",), ("whole",), ("whole", "env.execute=1")):
        assert main(["eval", name, "episodes=6", *change]) == 0
    folders = [Path("runs", name, "eval") for name in ("every", "whole")]
    every, whole = (json.loads((f / f"{20:012d}-6.json").read_text()) for f in folders)
    short = json.loads((folders[1] / f"{20:012d}-6-execute=1.json").read_text())
    assert short["changed"] == ["env.execute=1"]
    assert short["episodes"] == every["episodes"] != whole["episodes"]
    capsys.readouterr()
    assert main(["eval", "whole", "env.execute=5"]) == 2
    assert "env.execute=5: more steps than the policy plans" in capsys.readouterr().err


def test_a_run_can_be_evaluated_while_it_is_being_written(tiny):
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    with Run.open("r", write=True):
        assert main(["eval", "r", "episodes=1"]) == 0


def test_runs_without_environment_or_checkpoint_are_refused(tiny, capsys):
    assert main(["train", *tiny("bc", "b", "steps=5")]) == 0
    assert main(["eval", "b"]) == 2
    assert "nothing to evaluate it in" in capsys.readouterr().err
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    shutil.rmtree("runs/r/ckpt")
    assert main(["eval", "r"]) == 2
    assert "has no checkpoint yet" in capsys.readouterr().err


def test_options_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").touch()

    def parse(words):
        return asked(["r", *words])

    few = parse(["episodes=7", "device=cpu"])
    assert few == ("r", [], 7, ["device=cpu"], None, {}, [], 100_000)
    assert parse([]) == ("r", [], 50, [], None, {}, [], 100_000)
    other = parse(["env=hopper", "env.options.ctrl_cost_weight=0", "seed=3", "env.execute=2"])
    assert other.world == ["env=hopper", "env.options.ctrl_cost_weight=0"]
    assert (other.seed, other.values) == (3, ["env.execute=2"])
    low, high, origin = parse(["ref_max=3e3", "ref_min=-20.5"]).references or (0, 0, "")
    assert (low, high) == (-20.5, 3000.0) and "command line" in origin
    for word, message in [
        ("episode=3", "did you mean 'episodes'"),
        ("episodes=0", "positive whole number"),
        ("episodes=x", "positive whole number"),
        ("seed=-1", "whole number that is not negative"),
        ("sed=1", "did you mean 'seed'"),
        ("algo.policy_lr=1", "unknown option"),
        ("ref_mn=1", "did you mean 'ref_min'"),
        ("ref_min=low", "ref_min=low: a return is needed"),
        ("ref_max=nan", "ref_max=nan: a return is needed"),
        ("ref_max=100", "ref_max without ref_min.*add ref_min="),
        ("ref_min=100", "ref_min without ref_max.*add ref_max="),
    ]:
        with pytest.raises(RheoError, match=message):
            parse([word])
    with pytest.raises(RheoError, match="ref_min=5 is not below ref_max=5"):
        parse(["ref_min=5", "ref_max=5"])


def test_a_changed_package_is_said_aloud(tiny, capsys):
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    file = Path("runs/r/run.json")
    saved = json.loads(file.read_text())
    saved["starts"][-1]["versions"]["mujoco"] = "1.50"
    del saved["crc"]  # as of an older version
    file.write_text(json.dumps(saved))
    capsys.readouterr()
    assert main(["eval", "r", "episodes=1"]) == 0
    assert "mujoco 1.50 made this run" in capsys.readouterr().err


def test_a_score_is_given_where_one_is_defined():
    rows = [Episode(0, 0, 0, 3234.3, 1000, True, False)]
    known = known_references({"id": "Hopper-v4", "options": {}})
    assert score(rows, known)["eval/score"] == pytest.approx(100.0)
    assert known_references({"id": "Hopper-v5", "options": {}}) is None
    assert "eval/score" not in score(rows, None)
    given = References(0.0, 6468.6, "given on the command line")
    assert score(rows, given)["eval/score"] == pytest.approx(50.0)


def test_there_is_no_score_where_options_make_another_task():
    assert known_references({"id": "Hopper-v4", "options": {"healthy_reward": 0.0}}) is None
    assert known_references({"id": "Hopper-v4", "options": {"render_mode": "rgb_array"}})


def test_a_score_stands_beside_its_return_task_and_references(tiny, capsys):
    assert main(["train", *tiny("sac", "r", "steps=60")]) == 0
    capsys.readouterr()
    assert main(["eval", "r", "episodes=2", "ref_min=0", "ref_max=1000"]) == 0
    line = next(l for l in capsys.readouterr().out.splitlines() if l.startswith("score"))  # noqa: E741
    stored = json.loads(Path(f"runs/r/eval/{60:012d}-2.json").read_text())
    value = stored["eval/return"]
    assert line == (
        f"score {value / 10:.1f} for return {value:.1f} in InvertedPendulum-v5 "
        "(0 is 0, 100 is 1000: given on the command line)"
    )
    assert stored["eval/score"] == pytest.approx(value / 10)
    assert stored["references"] == {"low": 0, "high": 1000, "origin": "given on the command line"}


def test_success_and_score_are_printed_with_interval_and_episodes(tmp_path):
    solved = [Episode(0, 0, i, 2880.6, 200, True, False, i < 40, i < 32) for i in range(50)]
    known = known_references({"id": "AdroitHandDoor-v1"})
    figures = {"env": "AdroitHandDoor-v1", "step": 7, "file": "f.json", **score(solved, known)}
    figures["decision_ms"] = 0.256
    assert known is not None
    text = report(
        cast(Any, SimpleNamespace(path=tmp_path)), {**figures, "references": known._asdict()}
    )
    assert "success at any step 80.0 %  95 % interval [67.0, 88.8]  (Wilson, 50 episodes)" in text
    assert "length 200.0, 0.26 ms per decision for one observation (median)" in text
    assert "success at the last step 64.0 %  95 % interval [50.1, 75.9]" in text
    assert "score 100.0 for return 2880.6 in AdroitHandDoor-v1 (0 is -56.5128, 100 is" in text


def test_a_run_is_steered_without_training(tiny, capsys):
    """One candidate is the plain sample; the file is named after what was changed."""
    assert main(["train", *tiny("rfm", "r", "steps=60", "algo.deploy_candidates=1")]) == 0
    assert main(["eval", "r", "episodes=3"]) == 0
    assert main(["eval", "r", "episodes=3", "steer=best", "steer.n=1"]) == 0
    both = ["steer=rlg,best", "steer.n=3", "steer.reference=r"]
    assert main(["eval", "r", "episodes=3", *both]) == 0
    plain, single = (
        json.loads(Path(f"runs/r/eval/{60:012d}-3{end}.json").read_text())["episodes"]
        for end in ("", "-steer=best-n=1")
    )
    assert plain == single
    assert Path(f"runs/r/eval/{60:012d}-3-steer=rlg,best-n=3-reference=r.json").is_file()


def test_plans_are_continued(tiny, capsys):
    """With plans of 4 of which 2 are executed, what follows depends on what was planned before."""
    assert main(["train", *tiny("rfm", "r", "steps=60", "horizon=4", "env.execute=2")]) == 0
    capsys.readouterr()
    assert main(["eval", "r", "episodes=3", "steer=inpaint"]) == 0
    assert " ms per decision for one observation (median)" in capsys.readouterr().out
    assert main(["eval", "r", "episodes=3", "steer=best", "steer.n=1"]) == 0
    plain, continued = (
        json.loads(next(Path("runs/r/eval").glob(f"*-3-steer={end}.json")).read_text())
        for end in ("best-n=1", "inpaint")
    )
    assert plain["decision_ms"] > 0 and plain["episodes"] != continued["episodes"]


@pytest.mark.parametrize("algo", ["sac", "dsrl_na", "reinflow"])
def test_executing_more_of_a_plan_than_was_learned_is_said(tiny, algo, capsys):
    """And works, as executing less does."""
    words = ["horizon=4", "env.execute=2", "steps=100", "eval_every=100"]
    assert main(["train", *tiny(algo, "r", *words)]) == 0
    for execute, said in ((4, True), (2, False), (1, False)):
        capsys.readouterr()
        assert main(["eval", "r", "episodes=2", f"env.execute={execute}"]) == 0
        text = f"taught it nothing of the others that env.execute={execute} executes"
        assert (text in capsys.readouterr().err) is said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steer=bset"], "steer=bset: choose from best, soft, rlg"),
        (["steer=rlg"], "needs another policy; add steer.reference=RUN"),
        (["steer.n=4"], "steer.n without steer=; add steer=best"),
        (["steer=best", "steer.m=4"], "unknown option 'steer.m'; did you mean 'steer.n'?"),
        (["steer=best", "steer.n=x"], "steer.n=x: a number (int) is needed"),
        (["steer=best", "steer.n=0"], "steer.n=0: must be at least 1"),
        (["steer=inpaint"], "continues plans, which `rheo eval` does"),
        (["steer=rlg", "steer.reference=g"], "its policy is TanhGaussian"),
    ],
)
def test_what_cannot_be_steered_is_said(tiny, capsys, words, message):
    assert main(["train", *tiny("rfm", "r", "steps=60")]) == 0
    assert main(["train", *tiny("sac", "g", "steps=60")]) == 0
    capsys.readouterr()
    assert main(["eval", "r", "episodes=1", *words]) == 2
    assert message in capsys.readouterr().err
    assert main(["eval", "g", "episodes=1", "steer=best"]) == 2
    assert "of flow and diffusion policies; this run's is a TanhGaussian" in capsys.readouterr().err
