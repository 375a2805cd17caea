"""What does not go together is refused with its reason, and what does keeps its settings."""

import sys
from pathlib import Path

import numpy as np
import pytest
from shipped import ALGOS, needs, reads

from rheo.errors import RheoError
from rheo.scripts.assemble import assemble
from rheo.scripts.batches import KINDS, taken
from rheo.scripts.cli import main
from rheo.scripts.config import schema
from rheo.scripts.config.build import target_of
from rheo.scripts.config.compose import compose as composed
from rheo.scripts.config.intent import remarks

ONLINE = ["env=inverted_pendulum", "env.num_envs=2", "episodes=1", "steps=40"]
NET = ["policy.net.width=8", "policy.net.depth=1"]
VALUE = ["algo.value.width=8", "algo.value.depth=1"]
ROLLOUTS = [*ONLINE, *NET, *VALUE, "source.decisions=4", "algo.learn.epochs=1"]


def compose(words):
    """The configuration of these words; what tunes a base does so from random weights."""
    return composed([*words, "init=scratch"])


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The word of a small recording of the pendulum's sizes; the test works beside it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(
        "data.npz",
        observations=rng.normal(size=(40, 4)),
        actions=rng.uniform(-1, 1, (40, 1)),
        rewards=rng.normal(size=40),
        episode_ends=[20, 40],
    )
    return "data=data.npz"


def refused(capsys, *words):
    """The message of a command that is refused and leaves nothing behind."""
    capsys.readouterr()
    assert main(["train", *words, "init=scratch", "name=r"]) == 2
    assert not Path("runs/r").exists()
    return capsys.readouterr().err


# ---- what an algorithm refuses to act on --------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=reinflow", "policy.sampler=heun"], "policy.sampler=euler"),
        (["algo=dppo", "algo.tuned_steps=1", "policy.steps=2", "policy.sampler=heun",
          "policy.clip_a=false"], "policy.sampler=euler"),
        (["algo=reinflow", "algo.censored=true", "policy.squash=tanh"], "policy.squash=clip"),
    ],
    ids=["reinflow", "dppo", "censored"],
)  # fmt: skip
def test_what_acting_refuses_is_a_message(data, capsys, words, message):
    assert message in refused(capsys, *words, *ROLLOUTS)


LAB = """
from rheo.algos.bc import BC


class Shy(BC):
    def __init__(self, policy, critic, generator, run_updates: int, *, lr: float):
        super().__init__(
            policy, generator, run_updates,
            lr=lr, weight_decay=0.0, lr_warmup=0.0, lr_floor=1.0, ema_rate=1.0,
            learn_padding=True, max_norm=1.0, draws=1, condition=[],
            contrast_coef=0.0, contrast_beta=1.0,
        )

    def act(self, obs):
        return self.policy.act(obs, self.policy.noise(len(obs), self.generator))

    def deploy(self, obs, generator):
        raise ValueError("algo.shy=true: it does not act; set algo.shy=false")
"""
LAB_FILE = """# @package _global_
defaults:
  - override /policy: flow
  - override /critic: none
  - override /source: dataset
  - override /env: none
policy:
  obs_norm: {kind: gaussian}
algo:
  _target_: seams_lab.Shy
  lr: 1.0e-3
"""


def test_what_the_deployed_policy_refuses_is_one_too(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(schema, "allowed", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "lab" / "algo").mkdir(parents=True)
    (tmp_path / "lab" / "seams_lab.py").write_text(LAB)
    (tmp_path / "lab" / "algo" / "shy.yaml").write_text(LAB_FILE)
    error = refused(capsys, "--config-dir", "lab", "algo=shy", data, *NET)
    assert "set algo.shy=false" in error


# ---- batches of another kind --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "given", "wanted"),
    [
        (["algo=iql", "source=dataset", *NET], "Dataset gives windows", "IQL learns from trans"),
        (["algo=dql", "source=plans", *NET], "Plans gives windows", "DQL learns"),
        (["algo=bc", "source=labels", "source.labels=2", *NET], "Labels gives", "BC learns from"),
    ],
)
def test_batches_of_another_kind_are_refused_before_the_first(data, capsys, words, given, wanted):
    error = refused(capsys, *words, data)
    assert f"source: {given}" in error and wanted in error and "leave source= out" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=plan", "source=labels", "source.labels=2"], "Plan learns from windows of states"),
        (["algo=ctrl", "source=plans", "critic.width=8"], "CTRL learns from labels of recorded"),
    ],
)
def test_labels_of_another_kind_are_no_labels(data, capsys, words, message):
    """Those of plans are names of what is measured, those of actions are numbers."""
    assert message in refused(capsys, *words, data, *NET)


@pytest.mark.parametrize("algo", ALGOS)
def test_every_algorithm_takes_what_its_own_source_gives(algo, data):
    tree = compose(needs(algo, data.partition("=")[2]))
    source, algorithm = (target_of(tree[name], name) for name in ("source", "algo"))
    kinds = taken(algorithm.__new__(algorithm))
    assert source.gives in kinds and {*kinds} <= {*KINDS}


# ---- policies that act by jumps -----------------------------------------------------------------

MATCHING = ["awm", "awm_gae", "awm_q", "awm_q_tune", "bc", "branch", "crd", "d3po", "dac", "dacer",
            "dpmd", "dpo", "dql", "expo", "fisor", "fpmd", "fpo", "fpo_pp", "fql", "gendrive",
            "iql", "parl", "qam", "qsm", "qvpo", "rfm", "rfm_offline", "rl100", "sdac"]  # fmt: skip
FREE = ["dsrl_na", "expo", "flame", "fqe", "meanflow", "ofql", "reinflow", "resip", "rfs",
        "rlcm", "sac_flow", "shortcut", "tdm"]  # fmt: skip
TABLES = [
    "d3po",
    "dac",
    "dacer",
    "dpmd",
    "fisor",
    "qsm",
    "qvpo",
    "sdac",
]  # whose files ask for noise
PLAIN = ["policy.path=linear", "policy.levels=null", "policy.betas=cosine", "policy.prediction=v",
         "policy.eta=0", "policy.clip_a=false"]  # fmt: skip


def few_step(algo, data, *more):
    """The configuration of an algorithm on a few-step policy."""
    given = needs(algo, data.partition("=")[2])
    places = given if reads(algo) else [f"algo={algo}", *ONLINE]
    places = [*places, *PLAIN] if algo in TABLES else places
    return compose([*places, "policy=fewstep", *places, *NET, *more])


@pytest.mark.parametrize("algo", MATCHING)
def test_a_policy_that_acts_by_jumps_is_refused_where_they_are_never_trained(data, algo):
    with pytest.raises(RheoError, match="jumps.*algo=reinflow.*algo.base_lr=0.*policy=flow"):
        assemble(few_step(algo, data))


@pytest.mark.parametrize("algo", FREE)
def test_it_is_free_where_they_are_scored_or_trained_or_the_base_rests(data, algo):
    rests = ["algo.base_lr=0"] if algo == "expo" else []
    assert assemble(few_step(algo, data, *rests)).algo.policy.jumps


@pytest.mark.parametrize("algo", ["meanflow", "ofql", "shortcut"])
def test_a_policy_without_jumps_is_refused_where_they_are_trained(data, algo):
    with pytest.raises(RheoError, match="needs a FewStepPolicy and this is a FlowPolicy"):
        assemble(compose([f"algo={algo}", "policy=flow", data, *NET]))


@pytest.mark.parametrize("policy", ["flow", "fewstep"])
@pytest.mark.parametrize(
    ("algo", "kind", "more"),
    [("cfgrl", "Guided", []), ("ctrl", "Labelled", ["source.labels=2", "critic.members=2"])],
)
def test_a_policy_without_flags_or_labels_is_refused_where_these_are_trained(
    data, policy, algo, kind, more
):
    with pytest.raises(RheoError, match=f"needs a {kind}Policy and this is a F"):
        assemble(compose([f"algo={algo}", f"policy={policy}", data, *NET, *more]))


def test_labels_come_from_a_source_of_labels_as_many_as_the_policy_is_asked_by(data):
    for words, told in (
        (["source=dataset"], "source: CTRL learns from labels.*source=labels"),
        (["source.labels=3", "source.label=reward"], "source.labels=3.*policy.labels=2"),
    ):
        with pytest.raises(RheoError, match=told):
            assemble(compose(["algo=ctrl", data, *NET, *words]))


def test_all_that_average_velocities_need_is_said_at_once(data):
    with pytest.raises(RheoError, match="policy.eta=0.5.*clip_a=true: .* policy.eta=0.0 .*=false"):
        assemble(few_step("dppo", data, "policy.eta=0.5"))


# ---- units of actions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["algo=dql", "policy.action_norm.kind=gaussian"],
        ["algo=bc", "policy.action_norm.kind=gaussian"],
        ["algo=bc", "policy.clip_x=true"],
        ["algo=dql", "policy.clip_a=true"],
        ["algo=rfm_offline", "algo.reverse.support=tanh", "policy.action_norm.kind=minmax"],
    ],
    ids=" ".join,
)
def test_a_tanh_that_would_cap_actions_inside_their_box_is_refused(data, capsys, words):
    error = refused(capsys, *words, "policy.squash=tanh", data, *NET)
    assert words[-1] in error and "policy.squash=clip" in error


# ---- recorded rows beside an algorithm's own replay ---------------------------------------------


@pytest.mark.parametrize("algo", ["expo", "dsrl_na", "awm_q_tune", "awm_q", "sac"])
def test_a_mixed_source_keeps_the_replay_of_the_algorithms_own_file(data, algo):
    words = [f"algo={algo}", "env=inverted_pendulum"]
    own, mixed = compose(words)["source"], compose([*words, data, "source=mixed"])["source"]
    assert mixed["replay"] == own
    assert mixed["batch_size"] == own["batch_size"] and mixed["dataset"]["n_step"] == own["n_step"]
    if algo in ("expo", "dsrl_na", "awm_q_tune"):
        kept = [mixed["replay"][key] for key in ("warmup_policy", "warmup", "n_step", "batch_size")]
        assert kept == [True, 4000, 5, 64]


def test_words_of_the_user_win_over_the_algorithms_own_replay(data):
    words = ["source.replay.warmup=7", "source.batch_size=32", "source.replay.n_step=2"]
    mixed = compose(["algo=expo", "env=inverted_pendulum", data, "source=mixed", *words])["source"]
    assert mixed["replay"]["warmup"] == 7 and mixed["replay"]["warmup_policy"]
    assert (mixed["batch_size"], mixed["dataset"]["n_step"]) == (32, 2)


def test_recorded_settings_of_an_algorithm_and_plain_values_stay_in_a_mixed_source(data):
    mixed = compose(["algo=iql", "env=inverted_pendulum", data, "source=mixed"])["source"]
    none = [f"{part}.obs_norm.kind=none" for part in ("policy", "critic", "algo.value")]
    plain = compose(["algo=iql", "env=inverted_pendulum", "source=replay", *none])["source"]
    assert mixed["replay"] == plain and mixed["dataset"]["holdout"] == 0.0
    assert not mixed["replay"]["warmup_policy"]


def test_that_a_hot_temperature_flattens_a_trained_policy_is_said():
    words = ["algo=rfm", "env=hopper", "init=base"]
    tree = {**composed(words[:2]), "init": "base"}
    assert any("flattens the policy of init=" in told for told in remarks(tree, words))
    for more in (["algo.temperature=0.05"], ["algo.temperature_rule=fixed"]):
        tree = {**composed([*words[:2], *more]), "init": "base"}
        assert not any("flattens" in told for told in remarks(tree, [*words, *more]))
    assert not any("flattens" in told for told in remarks(composed(words[:2]), words[:2]))


def test_a_replay_is_warmed_up_by_the_policy_that_the_run_starts_from(data, capsys):
    """Uniform actions beside a base would be half of what a mixed batch clones."""
    clone = ["train", "algo=bc", data, *NET, "steps=2", "episodes=1", "name=base"]
    assert main(clone) == 0
    world, none = ["env=inverted_pendulum"], ["critic.obs_norm.kind=none"]
    mixed = [data, "source=mixed", *world]

    def replay(*words):
        source = composed([*words])["source"]
        return source.get("replay", source)["warmup_policy"]

    assert replay("algo=iql", "init=base", *mixed) and replay("algo=awm_q", "init=base", *mixed)
    assert replay("algo=awm_q", "init=base", *world, *none)
    assert not replay("algo=iql", "init=base", *mixed, "source.replay.warmup_policy=false")
    assert not replay("algo=iql", *mixed)
    small = [*ONLINE, *NET, *VALUE, "critic.width=8", "critic.depth=1", "source.replay.warmup=8"]
    words = ["algo=iql", "init=base", data, "source=mixed", *small, "source.batch_size=8"]
    assert main(["train", *words, "name=on"]) == 0
    assert "acted by the policy of init=" in capsys.readouterr().err


MINE = """# @package _global_
defaults:
  - expo
  - _self_
source:
  warmup: 30
  update_ratio: 2.0
"""


def test_values_of_a_users_own_algorithm_file_reach_the_replay(data, tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "allowed", [])
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "lab" / "algo").mkdir(parents=True)
    (tmp_path / "lab" / "algo" / "mine.yaml").write_text(MINE)
    words = ["--config-dir", "lab", "algo=mine", "env=inverted_pendulum", data, "source=mixed"]
    replay = compose(words)["source"]["replay"]
    assert (replay["warmup"], replay["update_ratio"], replay["warmup_policy"]) == (30, 2.0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=dsrl_sac", "source=transitions"], "source=transitions: .*codes.*dsrl_na.*mixed"),
        (["algo=shortcut", "source=mixed"], "source=mixed: .*a source of its own.*leave source="),
    ],
    ids=" ".join,
)
def test_a_source_that_an_algorithm_cannot_use_is_refused_with_the_reason(data, words, message):
    with pytest.raises(RheoError, match=f"^{message}"):
        compose([*words, "env=inverted_pendulum", data])


def test_a_steered_base_acts_itself_while_a_mixed_replay_warms_up(data):
    words = ["algo=dsrl_na", *ONLINE, *NET, data, "source=mixed", "source.replay.warmup=8"]
    small = [f"{part}.width=8" for part in ("critic", "algo.actor", "algo.noise_critic")]
    algo, source, _, _ = assemble(compose([*words, *small, "algo.noise_map.bound=3.0"]))
    given = []

    def act(obs):
        given.append(algo.act(obs))
        return given[-1]

    source.next(act)
    assert len(given) >= 4  # of two environments; none of these frames was a uniform action
