"""Commands that would run and do something else than they say: refused, or said."""

import logging
from pathlib import Path

import numpy as np
import pytest

from rheo.errors import RheoError
from rheo.scripts.cli import main
from rheo.scripts.config.compose import HOME, compose
from rheo.scripts.config.intent import remarks

DATA = "data=d.npz"
TUNING = (
    *("awm_q_tune", "crd", "d3po", "dpo", "dppo", "dsrl_na", "dsrl_sac", "expo", "reinflow"),
    *("resip", "rfs", "rlcm", "branch", "b2", "g2rpo", "solrl", "talk2move", "tracerl"),
)
FREE = (
    *("awm_q", "dpmd", "flame", "fpmd", "fpo", "ppo", "qsm", "qvpo", "rfm", "rfm_box", "rfm_paper"),
    *("dacer", "sac", "sac_flow", "sdac", "td3"),
)
ALGOS = {file.stem for file in (HOME / "algo").glob("*.yaml")}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.zeros((4, 11))
    np.savez("d.npz", observations=rows, actions=rows[:, :3], rewards=rows[:, 0], episode_ends=[4])


def errors(*words: str) -> list[str]:
    """The lines of the message for a wrong configuration."""
    with pytest.raises(RheoError) as caught:
        compose(words)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in (lines[1:] if len(lines) > 1 else lines)]


@pytest.mark.parametrize("algo", TUNING)
def test_tuning_and_steering_need_a_base_or_an_explicit_word(algo: str) -> None:
    for more in ([], ["init=null"]):
        found = errors(f"algo={algo}", "env=hopper", *more)
        assert len(found) == 1 and found[0].startswith("init: has to be set (init=RUN)")
        assert f"`rheo train algo={algo} init=base env=NAME`" in found[0]
    assert compose([f"algo={algo}", "env=hopper", "init=scratch"])["init"] is None


@pytest.mark.parametrize("algo", FREE)
def test_what_learns_from_scratch_needs_none(algo: str) -> None:
    assert compose([f"algo={algo}", "env=hopper"])["init"] is None


def test_an_exported_program_is_a_base_by_itself() -> None:
    Path("p.pt2").touch()
    kinds = [f"{part}.obs_norm.kind=none" for part in ("critic", "algo.actor", "algo.noise_critic")]
    words = ["algo=dsrl_na", "env=hopper", "policy=exported", *kinds]
    tree = compose([*words, "policy.path=p.pt2"])
    assert tree["init"] is None and tree["policy"]["path"] == str(Path.cwd() / "p.pt2")
    assert errors(*words, "policy.path=q.pt2") == ["policy.path=q.pt2: there is no such file"]
    found = errors("algo=dsrl_na", "env=hopper", "policy=exported", "policy.path=q.pt2")
    assert len(found) == 4 and found[-1] == "policy.path=q.pt2: there is no such file"
    assert all(f"{word}" in line for word, line in zip(kinds, found, strict=False))


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["algo=rfm"], "source=mixed puts recorded rows into every batch"),
        (["algo=sac"], "`rheo train algo=bc data="),
        (["algo=ppo"], "`rheo train algo=ppo init=base env=NAME`"),
        (["algo=iql", "source=replay", "policy.obs_norm.kind=none", "critic.obs_norm.kind=none",
          "algo.value.obs_norm.kind=none"], "source=mixed"),
    ],
)  # fmt: skip
def test_data_that_nothing_reads_are_refused(words: list[str], remedy: str) -> None:
    found = errors(*words, "env=hopper", DATA)
    assert len(found) == 1 and remedy in found[0]
    assert f"{words[0]} does not read recorded data" in found[0]


@pytest.mark.parametrize("algo", ["rl100", "tdm", "ctrl"])
def test_what_tunes_by_recorded_data_alone_is_told_so(algo: str) -> None:
    (found,) = errors(f"algo={algo}", DATA)
    assert f"`rheo train algo={algo} init=base data=FILE`" in found


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["algo=awm_gae", "algo.pulls=[{kind: data, coef: 1}]"],
            "set data=FILE source=rollouts_data",
        ),
        (["algo=awm_q", "algo.pulls=[{kind: data, coef: 1}]"], "set data=FILE source=mixed"),
        (
            ["algo=awm_gae", "source=rollouts_data", DATA],
            "nothing learns from the recorded actions",
        ),
        (["algo=ppo", "source=rollouts_data", DATA], "where the algorithm has this key"),
    ],
)
def test_a_pull_of_data_and_the_data_come_together(words: list[str], told: str) -> None:
    (found,) = errors(*words, "env=hopper")
    assert told in found


@pytest.mark.parametrize("words", [["recipe=ddrl", "init=scratch"], ["algo=awm_q", "source=mixed"]])
def test_recorded_actions_that_hold_a_policy_are_read(words: list[str]) -> None:
    pulls = [] if "recipe=ddrl" in words else ["algo.pulls=[{kind: data, coef: 1}]"]
    assert compose([*words, *pulls, "env=hopper", DATA])["data"]


@pytest.mark.parametrize("words", [["algo=bc"], ["algo=iql"], ["algo=rfm", "source=mixed"]])
def test_data_that_are_read_are_taken(words: list[str]) -> None:
    assert compose([*words, "env=hopper", DATA])["data"] == str(Path("d.npz").absolute())


@pytest.mark.parametrize("argv", [[], ["seed=1"], ["--config-dir", "."], ["steps=10", "name=x"]])
def test_a_command_that_does_not_say_what_to_train_is_refused(argv: list[str], capsys) -> None:
    assert main(["train", *argv]) == 2
    assert "needs to know what to train" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_what_was_chosen_without_being_named_is_said() -> None:
    for words, told in (
        (["algo=sac"], "env: not given, so the run is in Hopper-v5"),
        (["env=hopper"], "algo: not given, so RFM is trained"),
        (["algo=ppo", "env=hopper"], "the policy starts from random weights"),
    ):
        assert any(told in line for line in remarks(compose(words), words))
    for words in (["algo=sac", "env=hopper"], ["recipe=demo"], ["algo=bc", DATA]):
        assert remarks(compose(words), words) == []


def test_settings_of_an_environment_that_is_not_there_are_said() -> None:
    words = ["algo=bc", DATA, "env.num_envs=8", "env.obs_steps=2"]
    assert remarks(compose(words), words) == [
        "env.num_envs=8: not used, there is no environment (env=NAME)"
    ]


def test_steps_below_what_a_warm_up_or_a_rollout_takes_are_said() -> None:
    rollout = ["algo=ppo", "init=null", "env=hopper", "source.decisions=10", "env.num_envs=8"]
    found = remarks(compose([*rollout, "steps=64"]), rollout)
    assert any("steps=64: one rollout takes up to 80 frames" in line for line in found)
    assert not any("steps=" in line for line in remarks(compose([*rollout, "steps=80"]), rollout))
    for place, more in (("source", []), ("source.replay", ["source=mixed", DATA])):
        words = ["algo=sac", "env=hopper", f"{place}.warmup=100", *more]
        found = remarks(compose([*words, "steps=100"]), words)
        assert f"the first {place}.warmup=100 frames only collect experience" in found[0]
        assert remarks(compose([*words, "steps=101"]), words) == []


def test_a_remark_reaches_the_user_of_a_run(tiny, caplog) -> None:
    logging.getLogger("rheo").propagate = True
    assert main(["train", *tiny("sac", "r", "steps=30")]) == 0
    assert "steps=30: the first source.warmup=40 frames only collect" in caplog.text


# ------------------------------------------------------------------ led by what was typed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algo=bc"], "data: has to be set (data=FILE): algo=bc reads it as source.path"),
        (["algo=awm", "env=hopper"], "rheo train algo=awm source=replay env=NAME policy.obs_norm"),
        (
            ["algo=shortcut", "source=mixed", DATA],
            "source=mixed: this algorithm learns from a source of",
        ),
        (
            [
                "algo=dsrl_sac",
                "init=scratch",
                "env=hopper",
                "source=mixed",
                DATA,
                "horizon=4",
                "algo.noise_map.rows=2",
            ],
            "recorded plans of horizon=4 become codes of as many rows; set algo.noise_map.rows=4",
        ),
        (
            [
                "algo=dsrl_sac",
                "init=scratch",
                "env=hopper",
                "source=mixed",
                DATA,
                "policy.sampler=heun",
            ],
            "policy.sampler=heun: only Euler's steps are run backwards",
        ),
        (
            [
                "algo=dsrl_sac",
                "init=scratch",
                "env=hopper",
                "source=mixed",
                DATA,
                "source.shown_share=0.2",
            ],
            "source.shown_share=0.2: what is shown has no code",
        ),
        (["algo=dsrl_sac", "init=scratch", "source=transitions", DATA], "of which algo=dsrl_na"),
        (["algo=bc", "critic.width=8", DATA], "critic.width=8: algo=bc has no critic here"),
        (["algo=ppo", "env=hopper", "critic.members=3"], "algo=ppo has no critic here"),
        (["algo=bc", "~source.holdout", DATA], "set source.holdout=0"),
        (["algo=bc", "~source.time_limit", DATA], "set source.time_limit=null"),
        (["algo=sac", "env=hopper", "~algo.policy_lr"], "set another value, it is 0.0003 here"),
        (["algo=sac", "env=hopper", "~critic"], "nothing can be removed; set critic=none"),
        (["algo=bc", "data.on_bad=drap", DATA], "data.on_bad: must be Literal"),
        (["algo=bc", "data.on_bda=drop", DATA], "data.on_bda: unknown key"),
        (["algo=sac", "env=hopper", "seed=0,1"], "names several values; `rheo sweep`"),
        (["algo=sac", "env=hopper", "-m"], "-m: `rheo sweep seed=0,1,2"),
        (["algo=bc", "data=a.npz,d.npz"], "several files are data=[a.npz,d.npz]"),
        (["algo=sac", "env=hopper", "init=~nobody-there/x"], "init='~nobody-there/x': no such run"),
    ],
)
def test_a_message_leads_with_the_key_that_was_typed(words: list[str], message: str) -> None:
    found = errors(*words)
    assert len(found) == 1 and message in found[0], found


def test_zero_and_nothing_are_taken_where_they_were_offered() -> None:
    tree = compose(["algo=bc", DATA, "source.holdout=0", "source.time_limit=null"])
    assert tree["source"]["holdout"] == 0 and tree["source"]["time_limit"] is None


def test_statistics_that_nothing_gives_are_named_together() -> None:
    words = ["algo=iql", "source=replay", "env=hopper"]
    kinds = [
        "policy.obs_norm.kind=none",
        "critic.obs_norm.kind=none",
        "algo.value.obs_norm.kind=none",
    ]
    found = errors(*words)
    assert len(found) == 1 and " ".join(kinds) in found[0]
    assert compose([*words, *kinds])


def test_all_kinds_of_mistakes_are_reported_at_once() -> None:
    Path("torn.npz").write_text("nothing of a recording")
    found = errors(
        *("algo=rfx", "env=hoper", "seed=x", "data=torn.npz", "init=nix", "steps=0", "polcy.x=1"),
        *("policy.sampler=hn", "-m", "device=gpu", "critic.width=0"),
    )
    starts = [
        *("-m:", "algo=rfx:", "env=hoper:", "polcy:", "seed:", "policy.sampler:", "steps=0:"),
        *("critic.width=0:", "device='gpu':", f"data={Path.cwd() / 'torn.npz'}:", "init='nix':"),
    ]
    assert all(any(line.startswith(start) for line in found) for start in starts), found
    assert len(found) == len(starts) + 1  # and that rfm, the nearest, reads no data
