"""Starting from another run: every copy, every dual, every setting."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rheo.envs.batch import Batch
from rheo.envs.data.read import Played
from rheo.errors import RheoError
from rheo.scripts.assemble import Sizes, fit_statistics, make_algo
from rheo.scripts.cli import main
from rheo.scripts.config.compose import HOME, compose
from rheo.scripts.config.intent import remarks
from rheo.scripts.config.overrides import parse
from rheo.scripts.config.recorded import kept_of_base
from rheo.scripts.evaluate import reference
from rheo.scripts.start import modules, start_from
from rheo.scripts.store.run import Run
from rheo.scripts.store.state import capture, restore

ALGOS = sorted(file.stem for file in (HOME / "algo").glob("*.yaml"))
SIZES = Sizes(3, 2)
VELOCITY = {"kind": "velocity", "coef": 1.0}
OPTIONAL: dict[str, list[dict[str, Any]]] = {  # settings of `algo` that decide which copies exist
    "awm": [{}, {"signed_coef": 0.5, "bc_coef": 1.0}],
    "awm_q": [
        {},
        {"anchor_coef": 1.0},
        {"anchor_coef": 1.0, "trust_coef": 0.0},
        {"anchor_coef": 1.0, "ema_rate": 0.1},
    ],
    "awm_q_tune": [{}, {"trust_coef": 0.0, "anchor_coef": 1.0}],
    "awm_gae": [{}, {"trust_coef": 1.0}, {"anchor_coef": 1.0}, {"pulls": [VELOCITY]}],
    "dppo": [{}, {"pulls": [{"kind": "path", "coef": 1.0}]}],
    "fpo": [{}, {"trust_coef": 1.0, "anchor_coef": 1.0}],
    "fpo_pp": [{}, {"trust_coef": 1.0, "anchor_coef": 1.0}],
    "reinflow": [{}, {"anchor_coef": 0.1}],
    "dsrl_na": [{}, {"ema_rate": 1.0}],
    "dsrl_sac": [{}, {"ema_rate": 1.0}],
    "rfs": [{}, {"ema_rate": 1.0}],
}


def made(config, **changes):
    """A fresh algorithm of a configuration with other values of `algo`; and that configuration."""
    config = copy.deepcopy(config)
    config["algo"].update(changes)
    return make_algo(config, SIZES, 100), config


def learned(config, name, **changes):
    """A run folder whose weights and duals are all their own, as after training; its algorithm."""
    algo, config = made(config, **changes)
    generator = torch.Generator().manual_seed(1)
    obs, action = torch.randn(20, 3, generator=generator), torch.rand(20, 2, generator=generator)
    fit_statistics(algo, obs, action)
    with torch.no_grad():
        for part in modules(algo).values():
            for tensor in part.parameters():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    save(algo, config, name)
    return algo


def save(algo, config, name):
    with Run.create(name, config) as run:
        assert run.save(1, {"algo": capture(algo), "sizes": SIZES._asdict()}) is not None


def started(config, **changes):
    """An algorithm of another seed, before and after it started from run `a`."""
    algo, config = made({**config, "init": "a", "seed": 5}, **changes)
    before = copy.deepcopy({name: part.state_dict() for name, part in modules(algo).items()})
    start_from(algo, config)
    return algo, before


def distance(part, state):
    """The largest difference of a module's parameters from a state's."""
    pairs = [(value.detach(), state[key]) for key, value in part.named_parameters()]
    return max(float((a - b).abs().max()) for a, b in pairs)


def same_weights(part, other):
    mine, theirs = dict(part.named_parameters()), dict(other.named_parameters())
    shapes = {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    return shapes and all(torch.equal(value, theirs[key]) for key, value in mine.items())


# ------------------------------------------------------------------ every copy


@pytest.mark.parametrize("name", ALGOS)
def test_no_network_of_the_same_algorithm_is_left_at_its_first_weights(tiny, name, tmp_path):
    """With and without the optional copies, on either side."""
    config = compose(tiny(name, "b"))
    options = OPTIONAL.get(name, [{}])
    for index, theirs in enumerate(options):
        donor = learned(config, "a", **theirs)
        for mine in options:
            algo, before = started(config, **mine)
            for attribute, part in modules(algo).items():
                if not list(part.parameters()):
                    continue
                where = (attribute, theirs, mine)
                assert distance(part, before[attribute]) > 0, where
                twin = getattr(donor, attribute, None)
                if attribute in getattr(algo, "anchors", ()):
                    assert same_weights(part, donor.policy), where
                elif twin is not None:
                    assert same_weights(part, twin), where
                else:
                    others = modules(donor).values()
                    assert any(same_weights(part, other) for other in others), where
        (tmp_path / "runs/a").rename(tmp_path / f"runs/old{index}")


def test_the_anchor_of_a_run_without_one_is_the_policy_of_the_start(tiny):
    """It was .17 away from it, with an outlet of zeros: at the field of pure noise."""
    config = compose(tiny("awm_q", "b"))
    donor = learned(config, "a")
    algo, before = started(config, anchor_coef=1.0)
    assert algo.base is not None
    policy = donor.policy.state_dict()
    assert distance(algo.policy, policy) == distance(algo.base, policy) == 0
    assert distance(donor.policy, before["base"]) > 0.17
    assert float(algo.base.net.outlet.weight.abs().max()) > 0
    assert float(before["base"]["net.outlet.weight"].abs().max()) == 0


@pytest.mark.parametrize("name", ["awm_q", "reinflow", "dppo"])
def test_the_anchor_is_not_the_one_of_the_run_before(tiny, name):
    config, part = compose(tiny(name, "b")), "origin" if name == "dppo" else "base"
    held = {"pulls": [{"kind": "path", "coef": 1.0}]} if name == "dppo" else {"anchor_coef": 1.0}
    donor = learned(config, "a", **held)
    algo, _ = started(config, **held)
    base, before = vars(algo)[part], vars(donor)[part]
    assert same_weights(base, donor.policy) and not same_weights(base, before)


def test_the_coefficient_of_a_pull_goes_on_with_the_networks(tiny):
    config = compose(tiny("awm_q", "b"))
    pulls = [{"kind": "velocity", "rule": "dual", "coef": 1.0, "threshold": 0.1, "rate": 0.5}]
    donor, saved = made(config, pulls=pulls)
    donor.anchoring.parts["velocity"].learn(torch.tensor(9.0))
    save(donor, saved, "a")
    algo, _ = started(config, pulls=pulls)
    assert algo.anchoring.parts["velocity"].coef.item() == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["dsrl_na", "dsrl_sac"])
def test_the_actor_that_is_deployed_is_never_an_untrained_one(tiny, name):
    """Runs from before there was an average are continued with today's default."""
    config = compose(tiny(name, "b"))
    donor = learned(config, "a", ema_rate=1.0)
    algo, _ = started(config)
    assert algo.slow is not None and same_weights(algo.slow, donor.actor)
    obs = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    both = [each.deploy(obs, torch.Generator().manual_seed(3)) for each in (algo, donor)]
    assert torch.equal(*both)


def test_a_relative_critic_keeps_the_place_that_it_looks_from(tiny):
    """The anchor moves on to the policy of the start; the critic was learned from its origin."""
    config = compose(tiny("awm_q_tune", "b"))
    donor = learned(config, "a")
    donor.critic.measure(torch.randn(8, 1, 2, generator=torch.Generator().manual_seed(4)))
    Path("runs/a").rename("runs/old")
    save(donor, made(config)[1], "a")
    algo, _ = started(config)
    obs, action = torch.randn(4, 3), torch.rand(4, 1, 2)
    assert torch.equal(algo.critic(obs, action), donor.critic(obs, action))
    assert same_weights(algo.origin, donor.origin) and same_weights(algo.base, donor.policy)


def test_a_checkpoint_from_before_the_origin_was_kept_apart_loads(tiny):
    config = compose(tiny("awm_q_tune", "b"))
    donor, config = made(config)
    state = {name: part for name, part in capture(donor).items() if name != "origin"}
    algo, _ = made({**config, "seed": 5})
    restore(algo, state)
    assert same_weights(algo.origin, donor.base)
    plain = capture(made(compose(tiny("awm_q", "b")), anchor_coef=1.0)[0])
    assert "origin" not in type(algo).upgrade(plain)


@pytest.mark.parametrize(
    ("name", "lost", "kin"), [("sac", "target", "critic"), ("dql", "average", "policy")]
)
def test_a_copy_that_is_not_in_the_checkpoint_starts_as_what_it_follows(tiny, name, lost, kin):
    config = compose(tiny(name, "b"))
    donor = learned(config, "a")
    Path("runs/a").rename("runs/old")
    state = {key: value for key, value in capture(donor).items() if key != lost}
    with Run.create("a", config) as run:
        run.save(1, {"algo": state, "sizes": SIZES._asdict()})
    algo, _ = started(config)
    assert same_weights(getattr(algo, lost), getattr(donor, kin))


def test_a_network_that_has_no_counterpart_is_told(tiny, caplog):
    config = compose(tiny("expo", "b"))
    donor = learned(config, "a")
    Path("runs/a").rename("runs/old")
    state = {key: value for key, value in capture(donor).items() if key != "editor"}
    with Run.create("a", config) as run:
        run.save(1, {"algo": state, "sizes": SIZES._asdict()})
    started(config)
    assert "that run has no algo.editor, which starts untrained" in caplog.text
    caplog.clear()
    Path("runs/a").rename("runs/older")
    save(donor, config, "a")
    started(config)
    assert "untrained" not in caplog.text


@pytest.mark.parametrize("name", ["awm_gae", "awm_q", "dppo", "expo", "fql"])
def test_all_copies_start_as_the_deployed_policy_of_another_algorithm(tiny, name):
    config = compose(tiny("bc", "b"))
    config["policy"] = compose(tiny(name, "b"))["policy"]
    donor = learned(config, "a")
    changes = {"trust_coef": 1.0, "anchor_coef": 1.0} if name[:3] == "awm" else {}
    algo, _ = started(compose(tiny(name, "b")), **changes)
    copies = [part for part in modules(algo).values() if type(part) is type(algo.policy)]
    assert len(copies) > 1
    assert all(same_weights(part, donor.average) for part in copies)


# ------------------------------------------------------------------ duals and scales


def test_the_temperature_goes_on_with_the_networks_unless_another_start_is_asked_for(tiny):
    """It was 1.0 again, with the networks that had been tuned to .0067."""
    for name in ("sac", "expo", "dsrl_na"):
        config = compose(tiny(name, name))
        donor, _ = made(config)
        donor.temperature.log.data.fill_(-5.0)
        donor.temperature.update(torch.tensor(0.0))
        save(donor, config, "a")
        algo, _ = started(config)
        assert torch.equal(algo.temperature.value, donor.temperature.value)
        assert float(algo.temperature.value) == pytest.approx(0.0067, rel=0.01)
        assert not algo.temperature.optimizer.state_dict()["state"]
        asked, _ = started(config, alpha=0.5)
        assert float(asked.temperature.value) == 0.5
        Path("runs/a").rename(f"runs/{name}")


def test_the_scales_of_reverse_flow_matching_go_on_and_a_fixed_temperature_is_a_setting(tiny):
    """They were 37 -> 1 and .1 -> .6."""
    config = compose(tiny("rfm_box", "b"))
    donor, _ = made(config, temperature_rule="spread")
    for part, value in ((donor.q_scale, 37), (donor.spread, 0.1), (donor.log_temperature, -7)):
        part.fill_(value)
    save(donor, {**config, "algo": {**config["algo"], "temperature_rule": "spread"}}, "a")
    algo, _ = started(config, temperature_rule="spread")
    assert float(algo.q_scale) == 37 and bool((algo.spread == donor.spread).all())
    assert float(algo.log_temperature) == -7
    asked, _ = started(config, temperature_rule="spread", temperature=0.2)
    fixed, _ = started(config, temperature=0.05)
    assert float(asked.log_temperature.exp()) == pytest.approx(0.2)
    assert float(fixed.log_temperature.exp()) == pytest.approx(0.05)
    one = torch.ones(8)
    batch = Batch(torch.randn(8, 3), torch.rand(8, 1, 2), one, one, torch.randn(8, 3))
    for _ in range(2):
        algo.update(batch)
    assert 36 < float(algo.q_scale) < 37  # moved by its rate, not thrown away


def test_the_scale_of_rewards_goes_on_with_the_value(tiny):
    """It was not set, under a value network of the old scale."""
    config = compose(tiny("ppo", "b"))
    donor, _ = made(config)
    one = torch.ones(5, 3, dtype=torch.bool)
    reward = 340 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    donor.scale(reward, 0.9 * one, ~one)
    save(donor, config, "a")
    algo, _ = started(config)
    assert torch.equal(algo.scale.std, donor.scale.std) and float(algo.scale.std) > 100
    assert len(algo.scale.running) == 0 and algo.frames == algo.rollouts == 0
    assert not algo.value_opt.state_dict()["state"]


# ------------------------------------------------------------------ settings are no weights


def test_the_bounds_of_the_noise_are_this_runs(tiny):
    """A donor's .198 was used where .12 was asked for."""
    config = compose(tiny("reinflow", "b"))
    for schedule in ("learn", "const", "learn_decay"):
        donor, _ = made(config)
        donor.noise.settle(0.8)
        assert float(donor.noise.top) < donor.noise.std_max
        save(donor, config, "a")
        node = {**config["algo"]["noise"], "std_max": 0.12, "schedule": schedule}
        algo, _ = started(config, noise=node)
        assert float(algo.noise.top) == pytest.approx(0.12)
        assert same_weights(algo.noise, donor.noise)
        Path("runs/a").rename(f"runs/{schedule}")


def test_the_map_of_the_noise_is_this_runs_and_the_change_is_told(tiny, caplog):
    config = compose(tiny("dsrl_sac", "b"))
    donor = learned(config, "a")
    node = {**config["algo"]["noise_map"], "kind": "lowrank"}
    with caplog.at_level(logging.INFO, "rheo"):
        algo, before = started(config, noise_map=node)
    assert torch.equal(algo.noise_map.matrix, before["noise_map"]["matrix"])
    assert not torch.equal(algo.noise_map.matrix, donor.noise_map.matrix)
    assert "algo.noise_map.kind interpolated -> lowrank" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "rheo"):
        started(config)
    assert "noise_map.kind=interpolated" in caplog.text and "->" not in caplog.text


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("sac", ("critic", "activation"), "tanh"),
        ("ppo", ("algo", "value", "activation"), "tanh"),
        ("expo", ("algo", "editor", "log_std_min"), -3.0),
        ("dsrl_na", ("algo", "noise_critic", "activation"), "relu"),
    ],
)
def test_settings_that_give_other_networks_another_meaning_are_refused(tiny, name, place, value):
    config = compose(tiny(name, "b"))
    learned(config, "a")
    node = config
    for key in place[:-1]:
        node = node[key]
    there, node[place[-1]] = node[place[-1]], value
    key = ".".join(place)
    with pytest.raises(RheoError, match=f"its {key} is {there} and here it is {value}.*{key}="):
        started(config)


def test_codes_and_actions_are_not_taken_for_each_other(tiny):
    """A critic of plain actions has the shapes of one of codes."""
    there = compose(tiny("dsrl_na", "a"))
    here = compose(tiny("dsrl_sac", "b"))
    learned(there, "a", relative=False)
    here["critic"]["obs_norm"] = there["critic"]["obs_norm"]
    with pytest.raises(RheoError, match="critic._target_ is .*QEnsemble.*init_part=base"):
        started(here)
    started({**here, "init_part": "base"})


# ------------------------------------------------------------------ what a base's behaviour is


BEYOND = {"expo": "edits of its base's", "dsrl_na": "its actor", "resip": "its head"}
BEYOND |= {"rfs": "its editor"}


@pytest.mark.parametrize("name", BEYOND)
def test_a_behaviour_beyond_a_policy_is_refused_with_the_ways_out(tiny, name, caplog):
    """An EXPO run that was evaluated at 27.5 started ReinFlow at 4.5, without a word."""
    config = {**compose(tiny(name, "a")), "init": None}
    donor = learned(config, "a")
    chunk = [f"horizon={config['horizon']}"]
    other = compose(tiny("reinflow", "b", *chunk))
    with pytest.raises(RheoError) as refused:
        started(other)
    assert BEYOND[name] in str(refused.value) and "init_part=base" in str(refused.value)
    assert "init=" not in str(refused.value).replace("init=a", "")
    with caplog.at_level(logging.INFO, "rheo"):
        algo, _ = started({**other, "init_part": "base"})
    assert same_weights(algo.policy, getattr(donor, "average", donor.policy))
    assert "init=a: its base; " in caplog.text
    again, _ = started(config)
    assert same_weights(again.policy, donor.policy)
    Path("runs/a").rename("runs/old")
    learned({**config, "init": "cloned"}, "a")
    with pytest.raises(RheoError, match="init=cloned starts from the run that it started from"):
        started({**other, "init_part": "policy"})


def test_the_head_of_flow_q_learning_is_what_it_deploys(tiny):
    config = compose(tiny("fql", "a"))
    donor = learned(config, "a")
    there = compose(tiny("reinflow", "b"))
    there["policy"] = dict(config["policy"])
    with pytest.raises(RheoError, match="policy.steps=1, or init_part=base"):
        started(there)
    there["policy"]["steps"] = 1
    algo, _ = started(there)
    assert same_weights(algo.policy, donor.head)
    obs = torch.randn(4, 3)
    acts = [each.deploy(obs, torch.Generator().manual_seed(3)) for each in (algo, donor)]
    assert torch.equal(*acts)
    algo, _ = started({**there, "init_part": "base"})
    assert same_weights(algo.policy, donor.policy)


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("rfm", {}, "without the best of 8 samples by its critic"),
        ("awm_q_tune", {}, "without its chain algo.steer=best (n=4)"),
        ("dppo", {"tuned_steps": 1}, "its base, which took the first 1 of its denoising steps"),
        ("awm_q", {}, "its deployed policy; keeps"),
        ("qsm", {}, "10 samples by its critic and the noise of its steps (policy.eta=1); "),
    ],
)
def test_what_deployment_adds_to_a_policy_is_told(tiny, caplog, name, words, told):
    config = compose(tiny(name, "a"))
    learned(config, "a", **words)
    here = compose(tiny("bc", "b"))
    here["policy"] = config["policy"]
    with caplog.at_level(logging.INFO, "rheo"):
        started(here)
    assert told in caplog.text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dppo", "changes noise of its steps none -> policy.eta=1 (policy.eta=0 keeps it)"),
        ("qsm", "without the best of 10 samples by its critic; keeps"),
    ],
)
def test_noise_that_a_policy_is_judged_with_is_that_which_it_acts_with_or_told(
    tiny, caplog, name, told
):
    config = compose(tiny(name, "a"))
    learned(config, "a")
    here = compose(tiny("fqe", "b", "init=a"))
    assert here["policy"]["eta"] == 1
    with caplog.at_level(logging.INFO, "rheo"):
        started(here)
    assert told in caplog.text


def test_a_run_without_a_base_says_so(tiny):
    config = compose(tiny("bc", "a"))
    learned(config, "a")
    with pytest.raises(RheoError, match="init_part=base: init=a is a BC run without a base"):
        started({**config, "init_part": "base"})
    algo, _ = started({**config, "init_part": "policy"})
    assert same_weights(algo.policy, algo.average)
    with pytest.raises(RheoError, match="init_part=base: there is no init="):
        compose(tiny("bc", "b", "init_part=base"))


# ------------------------------------------------------------------ sampling settings of the base


def cloned(tiny, *words):
    """A cloned base's folder, `a`, with its configuration."""
    config = compose([w for w in tiny("bc", "a", *words) if w != "policy.steps=2"])
    learned(config, "a")
    return config


def composed(tiny, algo, *words):
    """The configuration of a run that starts from `a`, sampling settings left to it."""
    kept = [w for w in tiny(algo, "b", "init=a", *words) if not w.startswith("policy.")]
    return compose(kept)


DIFFUSION = ["policy.path=cosine", "policy.prediction=eps", "policy.clip_a=true", "horizon=2"]


@pytest.mark.parametrize("algo", ["expo", "dsrl_na", "resip", "awm_q_tune", "reinflow", "awm_gae"])
def test_a_base_samples_as_it_was_evaluated(tiny, algo, caplog):
    """clip_a of a diffusion base was dropped for every algorithm, its steps for most."""
    base = cloned(tiny, *DIFFUSION, "policy.deploy_scale=0.5")
    config = composed(tiny, algo)
    asked = 4 if algo in ("reinflow", "awm_gae") else 10
    assert config["policy"] == {**base["policy"], "steps": asked}
    assert config["policy"]["clip_a"] is True
    made_, config = made({**config, "seed": 5})
    with caplog.at_level(logging.INFO, "rheo"):
        start_from(made_, config)
    line = [record.message for record in caplog.records if record.message.startswith("init=a")]
    assert len(line) == 1 and "policy.clip_a=true" in line[0] and "horizon=2" in line[0]
    changed = "changes policy.steps 10 -> 4 (policy.steps=10 keeps it)"
    assert (changed in line[0]) == (asked == 4)
    assert "policy.steps=10" in line[0]


@pytest.mark.parametrize("algo", ["expo", "dsrl_sac", "resip"])
def test_the_base_that_is_steered_acts_as_the_base_that_was_evaluated(tiny, algo):
    """Errors of an eps base were .14 where clip_a was lost, and .004 .. .05 by other steps."""
    base = cloned(tiny, *DIFFUSION)
    donor, _ = made(base)
    restore(donor, (Run.open("a").load() or {})["algo"])
    new, config = made({**composed(tiny, algo), "seed": 5})
    start_from(new, config)
    obs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    noise = donor.average.noise(16, torch.Generator().manual_seed(1))
    assert torch.equal(new.policy.act(obs, noise), donor.average.act(obs, noise))
    new.policy.clip_a = False
    assert not torch.equal(new.policy.act(obs, noise), donor.average.act(obs, noise))


def test_what_is_set_by_hand_is_used_and_told(tiny, caplog):
    cloned(tiny, *DIFFUSION, "env=inverted_pendulum", "env.execute=1")
    words = ["policy.steps=3", "policy.clip_a=false", "env.execute=2"]
    kept = [w for w in tiny("expo", "b", "init=a") if not w.startswith("policy.")]
    config = compose([*kept, *words])
    assert config["policy"]["steps"] == 3 and config["policy"]["clip_a"] is False
    algo, config = made(config)
    with caplog.at_level(logging.INFO, "rheo"):
        start_from(algo, config)
    assert "policy.steps 10 -> 3 (policy.steps=10 keeps it)" in caplog.text
    assert "policy.clip_a true -> false (policy.clip_a=true keeps it)" in caplog.text
    assert "env.execute 1 -> 2 (env.execute=1 keeps it)" in caplog.text


def test_a_base_is_trained_further_in_the_world_it_was_made_in(tiny, caplog):
    """Options of an environment say what actions mean: a robomimic file's controller was lost."""
    words = ["env=inverted_pendulum", "+env.options.reset_noise_scale=0.05"]
    cloned(tiny, *words, "+env.options.frame_skip=3")
    config = composed(tiny, "expo", words[0])
    assert config["env"]["options"] == {"reset_noise_scale": 0.05, "frame_skip": 3}
    other = composed(tiny, "expo", "env=gym", "env.id=InvertedPendulum-v5")
    assert other["env"]["options"] == config["env"]["options"]
    assert not composed(tiny, "expo", "env=inverted_double_pendulum")["env"]["options"]
    typed = composed(tiny, "expo", words[0], "+env.options.reset_noise_scale=0.1")
    assert typed["env"]["options"] == {"reset_noise_scale": 0.1, "frame_skip": 3}
    algo, typed = made({**typed, "seed": 5})
    with caplog.at_level(logging.INFO, "rheo"):
        start_from(algo, typed)
    assert "env.options.reset_noise_scale 0.05 -> 0.1 (" in caplog.text
    assert "env.options.frame_skip=3" in caplog.text


@pytest.mark.parametrize(
    ("words", "env_id"),
    [
        (["env=inverted_pendulum"], "InvertedPendulum-v5"),
        (["env=gym", "env.id=InvertedPendulum-v4"], "InvertedPendulum-v4"),
    ],
)
def test_a_base_is_trained_further_in_its_environment_where_none_is_named(tiny, words, env_id):
    """It was trained on Hopper, whatever it came from, and refused for its sizes."""
    cloned(tiny, *words)
    asked = ["algo=expo", "init=a"]
    config = compose(asked)
    assert config["env"]["id"] == env_id
    assert f"env: not given, so the run is in {env_id}, as its base" in remarks(config, asked)
    recipe = ["recipe=manipulation_expo", "init=a"]
    assert remarks(compose(recipe), recipe)[0].endswith(f"so the run is in {env_id}, as its base")
    named = [*asked, "env=swimmer"]
    assert compose(named)["env"]["id"] == "Swimmer-v5" and "env" not in str(remarks(config, named))
    assert compose([*asked, "env.id=Swimmer-v5"])["env"]["id"] == "Swimmer-v5"


def test_data_that_tell_no_environment_leave_a_base_in_its_own(tiny):
    """It was trained on Hopper. Without a base too, the default is said."""
    cloned(tiny, "env=inverted_pendulum")
    asked = ["algo=rfm", "source=mixed", "data=data.npz"]
    config = compose([*asked, "init=a"])
    assert config["env"]["id"] == "InvertedPendulum-v5"
    assert remarks(config, [*asked, "init=a"])[0].endswith("InvertedPendulum-v5, as its base")
    assert "env: not given, so the run is in Hopper-v5" in remarks(compose(asked), asked)


def test_options_of_the_data_that_give_way_to_the_bases_are_said(tiny, caplog):
    cloned(tiny, "env=inverted_pendulum", "+env.options.frame_skip=3")
    told = Played("InvertedPendulum-v5", True, {"frame_skip": 2, "reset_noise_scale": 0.05})
    asked = parse(["init=a", "data=b.hdf5"], [])
    base = compose(["algo=expo", "init=a"])
    base["env"]["options"]["reset_noise_scale"] = 0.05
    caplog.clear()
    kept_of_base(base, told, asked)
    (said,) = caplog.messages
    assert said.startswith("env.options.frame_skip=3: that of init=, ") and said.endswith("with 2")
    kept_of_base(base, told, asked[1:])  # no base
    kept_of_base(base, told, parse(["init=a", "+env.options.frame_skip=3"], []))
    kept_of_base(base, told._replace(env_id="Hopper-v5"), asked)
    kept_of_base(base, None, asked)
    assert caplog.messages == [said]


def test_what_an_algorithms_file_needs_is_used_where_another_algorithm_starts(tiny):
    cloned(tiny, "policy.sampler=heun", "policy.eta=0.0")
    assert composed(tiny, "expo")["policy"]["sampler"] == "heun"
    assert composed(tiny, "reinflow")["policy"]["sampler"] == "euler"
    assert composed(tiny, "fpo_pp")["policy"]["deploy_scale"] == 0.0
    assert composed(tiny, "fpo")["policy"]["deploy_scale"] == 1.0
    assert composed(tiny, "dql")["policy"]["steps"] == 5
    assert compose(["recipe=demo_tune", "init=a"])["policy"]["steps"] == 4


def test_a_run_of_before_a_setting_existed_takes_todays(tiny, unvouched):
    from omegaconf import OmegaConf

    cloned(tiny)
    unvouched(Path("runs/a"))
    file = Path("runs/a/config.yaml")
    config = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(config, dict)
    del config["policy"]["deploy_scale"], config["init_part"]
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    config = composed(tiny, "expo")
    assert config["policy"]["deploy_scale"] == 1.0 and config["policy"]["steps"] == 10
    algo, config = made({**config, "seed": 5})
    start_from(algo, config)


def test_the_head_brings_its_single_step(tiny):
    learned(compose(tiny("fql", "a")), "a")
    assert composed(tiny, "reinflow")["policy"]["steps"] == 1
    assert composed(tiny, "fql")["policy"]["steps"] == 2
    assert composed(tiny, "reinflow", "init_part=base")["policy"]["steps"] == 4


# ------------------------------------------------------------------ messages


def refusal(capsys, *words):
    """The error of a command that is refused."""
    capsys.readouterr()
    assert main(list(words)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_tuning_a_run_whose_critic_looks_elsewhere_names_the_cause(tiny, capsys):
    """awm_q_tune after awm_q: "spread is none there and (1, 1) here" and nothing else."""
    learned(compose(tiny("awm_q", "a")), "a")
    words = [w for w in tiny("awm_q_tune", "b", "init=a") if w[:7] not in ("critic.", "policy.")]
    error = refusal(capsys, "train", *words)
    for told in (
        "algo.relative is false and here it is true",
        "critic.layer_norm=false",
        "critic.activation=relu",
        "init_part=policy",
    ):
        assert told in error
    algo, config = made(compose([*words, "init_part=policy"]))
    start_from(algo, config)
    set_ = error.partition("; set ")[2].partition(", or ")[0].split()
    algo, config = made(compose([*words, *set_]))
    start_from(algo, config)


def test_a_policy_of_another_kind_is_named_with_the_word_that_chooses_it(tiny):
    learned(compose(tiny("meanflow", "a")), "a")
    here = compose(tiny("reinflow", "b", "init=a"))
    with pytest.raises(
        RheoError, match="_target_ is .*FewStepPolicy and here .*; set policy=fewstep$"
    ):
        started(here)
    started(compose(tiny("reinflow", "b", "policy=fewstep", "init=a")))
    Path("runs/a").rename("runs/jumps")
    learned(compose(tiny("bc_gaussian", "a")), "a")
    with pytest.raises(RheoError, match="a Gaussian, and ReinFlow has a FlowPolicy here"):
        started(here)


@pytest.mark.parametrize("name", ["tdm", "ofql", "meanflow"])
def test_average_velocities_that_are_trained_begin_as_a_plain_flow(tiny, caplog, name):
    caplog.set_level("INFO", "rheo")
    flow = learned(compose(tiny("bc", "a")), "a").average
    config = compose(tiny(name, "b", "init=a"))
    algo, _ = started(config)
    assert config["policy"]["_target_"].endswith(".FewStepPolicy") and algo.policy.jumps
    obs = torch.randn(8, 3)
    x, t = flow.noise(8, torch.Generator().manual_seed(0)), torch.linspace(0.1, 0.9, 8)
    for part in [algo.policy, algo.average] + ([algo.base, algo.fake] if name == "tdm" else []):
        feat = part.features(obs)
        torch.testing.assert_close(part.velocity(x, t, feat), flow.velocity(x, t, feat))
        torch.testing.assert_close(
            part.average_velocity(x, t, t + 0.1, feat), part.velocity(x, t, feat)
        )
    assert "jumps begin as its velocity" in caplog.text


def test_a_policy_of_labels_begins_as_a_plain_flow_and_is_asked_otherwise_later(tiny, caplog):
    caplog.set_level("INFO", "rheo")
    flow = learned(compose(tiny("bc", "a")), "a").average
    config = compose(tiny("ctrl", "b", "init=a", "policy.labels=3"))
    algo, _ = started(config)
    obs, noise = torch.randn(8, 3), flow.noise(8, torch.Generator().manual_seed(0))
    for part in (algo.policy, algo.average, algo.base):
        assert part.labels == 3 and not part.vectors.any()
        torch.testing.assert_close(part.act(obs, noise), flow.act(obs, noise))
    assert "which every label acts as at first" in caplog.text
    other = learned(config, "b").average
    algo, config = made(compose(tiny("ctrl", "c", "init=b", "policy.label=2")))
    start_from(algo, config)  # with all labels of that run
    assert config["source"]["labels"] == 3 and algo.average.label == 2
    assert same_weights(algo.average, other)
    algo, config = made(compose(tiny("ctrl", "c", "init=b", "policy.labels=2")))
    with pytest.raises(RheoError, match="policy.labels is 3 and here it is 2"):
        start_from(algo, config)


def test_a_one_step_head_is_distilled_from_the_accepted_policy(tiny):
    accepted = learned(compose(tiny("rl100", "a", "init=scratch")), "a").accepted
    algo, _ = started(compose(tiny("tdm", "b", "init=a", "algo.eta=0")))
    obs, x, t = torch.randn(8, 3), torch.randn(8, 1, 2), torch.linspace(0.1, 0.9, 8)
    fields = (part.velocity(x, t, part.features(obs)) for part in (algo.base, accepted))
    torch.testing.assert_close(*fields)
    ends, feat = torch.ones(8), algo.policy.features(obs)
    end, _ = algo.policy.step(x, ends, ends, feat)
    assert torch.equal(end, x)  # a(x, 1) = x


def test_jumps_that_nobody_would_train_do_not_begin_as_a_plain_flow(tiny):
    learned(compose(tiny("bc", "a")), "a")
    for words in (["reinflow", "b", "policy=fewstep"], ["rlcm", "b"]):
        with pytest.raises(RheoError, match="a FlowPolicy, and .* a FewStepPolicy here"):
            started(compose(tiny(*words, "init=a")))


def test_a_missing_program_and_the_keys_that_it_cannot_give_are_named_at_once(tiny, capsys):
    """ "Interpolation key 'policy.obs_norm.kind' not found" hid both."""
    words = tiny("dsrl_na", "b", "policy=exported", "policy.path=nofile.pt2")
    words = [w for w in words if w[:11] not in ("policy.net.", "policy.step")]
    error = refusal(capsys, "train", *words)
    places = ("critic", "algo.actor", "algo.noise_critic")
    set_ = [f"{place}.obs_norm.kind=none" for place in places]
    assert all(word in error for word in set_) and "Interpolation" not in error
    assert "which Exported has not" in error
    assert "policy.path=nofile.pt2: there is no such file" in error
    error = refusal(capsys, "train", *words, *set_)
    assert "policy.path=nofile.pt2: there is no such file" in error and "obs_norm" not in error
    error = refusal(capsys, "train", *words, set_[0])
    assert f" {set_[0]}" not in error and set_[1] in error and set_[2] in error


def test_what_average_velocities_need_is_named_at_once(tiny, capsys):
    """dppo: "eta=0.5: average velocities need eta=0.0", and after it clip_a."""
    learned(compose(tiny("meanflow", "a")), "a")
    words = [*tiny("dppo", "b", "policy=fewstep", "init=a", "policy.eta=0.5")]
    error = refusal(capsys, "train", *words)
    assert "policy.eta=0.5 policy.clip_a=true: average velocities need" in error
    assert "need policy.eta=0.0 policy.clip_a=false" in error and "dppo" in error
    config = compose([*words, "policy.eta=0.0", "policy.clip_a=false"])
    algo, config = made(config)
    start_from(algo, config)


def test_a_noise_prediction_without_a_clip_is_named_as_the_cause(tiny, capsys):
    kind = ["policy.path=cosine", "policy.prediction=eps", "limits.saturated=1e-9"]
    words = tiny("reinflow", "b", *kind)
    capsys.readouterr()
    assert main(["train", *words]) == 4
    assert "policy.clip_a=true" in capsys.readouterr().err
    words = tiny("reinflow", "c", *kind, "policy.clip_a=true")
    assert main(["train", *words]) == 4
    assert "policy.clip_a=true" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["expo", "dsrl_na"])
def test_a_reference_whose_behaviour_is_more_than_a_policy_is_refused(tiny, name):
    config = compose(tiny(name, "a"))
    donor = learned(config, "a")
    with pytest.raises(RheoError, match="steer.reference=a: what this .* run deploys is"):
        reference("a", donor.policy)
    cloned_ = compose(tiny("bc", "b", f"horizon={config['horizon']}"))
    base = learned(cloned_, "b")
    assert same_weights(reference("b", base.policy), base.average)
