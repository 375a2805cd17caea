"""Tasks on MuJoCo Warp, on its CPU backend: the contract, and what breaks there."""

import copy
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from steps import same

from rheo.envs.guard import NonFiniteAction
from rheo.envs.mujoco import native, physics
from rheo.envs.suites import make
from rheo.envs.vector import gymnasium_make
from rheo.errors import EnvError
from rheo.scripts.watching import Watcher

pytest.importorskip("mujoco_warp", reason="needs pip install 'rheo-rl[warp]' (Python 3.11)")

from beside import actions, made

from rheo.envs.mujoco import variety, worlds

# ---- the contract ------------------------------------------------------------------------------


def test_shapes_and_types() -> None:
    env = made("HalfCheetah-v5", 3, max_episode_steps=4)
    assert (env.max_steps, env.backend, str(env.device)) == (4, "warp", "cpu")
    env.reset()
    step = env.step(actions(env, 1)[0])
    assert step.obs.shape == step.final_obs.shape == (3, 17)
    assert step.reward.dtype == step.obs.dtype == torch.float32
    wide = made("HalfCheetah-v5", 3, dtype=torch.float64)
    assert wide.reset().dtype == wide.step(actions(wide, 1)[0].double()).reward.dtype
    assert wide.dtype == torch.float64


def test_a_new_episode_begins_as_if_there_had_been_none_before() -> None:
    """From row 0 of the bank, as a world does that is set there by hand."""
    env = made(count=1)
    env.reset()
    ended, after = False, torch.zeros(())
    for action in actions(env, 200):
        step = env.step(action)
        after = step.obs
        if ended := bool(step.terminated[0]):
            break
    assert ended
    assert env._bank is not None
    start = env._bank.rows(torch.tensor([0]))
    assert torch.equal(after, start.obs)
    other = made(count=1)
    other.reset(9)
    other._begin(other._everywhere, start)
    other._obs.copy_(start.obs)
    for action in actions(env, 10, seed=1):
        assert torch.equal(env.step(action).final_obs, other.step(action).final_obs)


def test_idle_rows_stay_exactly_where_they_are() -> None:
    env, lone = made(), made()
    first = env.reset()
    lone.reset()
    plan = actions(env, 12)
    seen = []
    for k in range(6):
        active = torch.tensor([True, k % 2 == 0, False, True])
        step = env.step(torch.where(active[:, None], plan[k], torch.nan), active)
        assert step.valid.tolist() == active.tolist()
        assert not step.reward[~active].any()
        assert not (step.terminated | step.truncated).any()
        seen.append(step.obs)
    expected = [lone.step(plan[k]).obs for k in range(0, 6, 2)]
    assert torch.equal(seen[-1][1], expected[-1][1])
    assert torch.equal(seen[-1][2], first[2])
    assert env.step(plan[6], torch.zeros(4, dtype=torch.bool)).valid.any().item() is False
    assert env.counters == {"physics_resets": 0, "overflow": 0, "bad_obs": 0}


def test_a_saved_state_continues_bit_for_bit() -> None:
    env = made(seed=4, max_episode_steps=23)
    env.reset()
    plan, idle = actions(env, 80), torch.tensor([True, False, True, True])
    for action in plan[:30]:
        env.step(action)
    saved = env.state_dict()
    masks: list[Any] = [idle if k % 5 == 0 else None for k in range(50)]
    straight = [env.step(a, m) for a, m in zip(plan[30:], masks, strict=True)]
    other = made(seed=99, max_episode_steps=23)
    other.reset()
    other.step(plan[3])
    for target in (other, env):
        target.load_state_dict(saved)
        for one, action, mask in zip(straight, plan[30:], masks, strict=True):
            assert same(one, target.step(action, mask))
    with pytest.raises(EnvError, match="num_envs 4 but this environment has 3"):
        made(count=3).load_state_dict(saved)


def test_a_seed_fixes_everything_and_without_one_episodes_go_on() -> None:
    env = made(seed=5)
    first, second = env.reset(), env.reset()
    assert not torch.equal(first, second)
    assert torch.equal(env.reset(5), first)
    assert torch.equal(env.reset(), second)
    assert not torch.equal(made(seed=None).reset(), made(seed=None).reset())


def test_buffers_stay_where_they_are_and_what_was_returned_is_not_written_over() -> None:
    env = made(max_episode_steps=6)
    obs = env.reset()
    tensors = {**env._parts(), "ctrl": env._views["ctrl"], "overflow": env._worlds.overflow}
    before = {name: value.data_ptr() for name, value in tensors.items()}
    kept = [(obs, obs.clone())]
    for k, action in enumerate(actions(env, 14)):
        step = env.step(action, None if k % 3 else torch.tensor([True, False, True, True]))
        kept += [(value, value.clone()) for value in step if value is not None]
    env.reset()
    assert before == {name: value.data_ptr() for name, value in tensors.items()}
    assert env._worlds.bind("qpos").data_ptr() == before["qpos"]
    assert all(torch.equal(value, copy) for value, copy in kept)


def test_no_step_asks_the_device_for_anything() -> None:
    env = made(max_episode_steps=3)
    env.reset()
    plan = actions(env, 8)
    plan[5, 1] = torch.nan
    mask = torch.tensor([True, False, True, True])
    with Watcher() as watcher:
        for k, action in enumerate(plan):
            env.step(action, mask if k == 4 else None)
    assert watcher.reads == []
    with Watcher() as watcher:
        bool(torch.ones(3).any())
        torch.ones(3)[torch.tensor([True, False, True])]
    assert watcher.reads == ["_local_scalar_dense", "index"]


# ---- what breaks -------------------------------------------------------------------------------


def test_broken_worlds_are_cut_and_counted_and_their_neighbours_stay_bit_equal() -> None:
    env, whole = made(count=8), made(count=8)
    env.reset()
    whole.reset()
    plan, broken = actions(env, 10), [1, 4]
    kept = [0, 2, 3, 5, 6, 7]
    for k, action in enumerate(plan):
        held = env._obs.clone()
        if k == 2:
            env._qpos[1, 2] = torch.nan
            env._qvel[4, 1] = 1e12
        step, other = env.step(action), whole.step(action)
        if k == 2:
            assert step.valid.tolist() == [i in kept for i in range(8)]
            assert step.truncated[broken].all()
            assert not step.terminated[broken].any()
            assert not step.reward[broken].any()
            assert torch.equal(step.final_obs[broken], held[broken])
            assert not torch.equal(step.obs[broken], held[broken])
        else:
            assert step.valid.all()
        assert torch.isfinite(step.obs).all()
        for one, two in zip(step, other, strict=True):
            assert one is two is None or torch.equal(one[kept], two[kept])  # type: ignore[index]
    assert env.counters == {"physics_resets": 2, "overflow": 0, "bad_obs": 0}


def test_an_observation_that_is_not_finite_is_counted_apart() -> None:
    env = made()
    env.reset()
    own = env._task.observe

    def observe(out: torch.Tensor) -> None:
        own(out)
        out[3, 5] = torch.inf

    env._task.observe = observe  # type: ignore[method-assign]
    assert env.step(actions(env, 1)[0]).valid.tolist() == [True, True, True, False]
    assert env.counters == {"physics_resets": 0, "overflow": 0, "bad_obs": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_action_that_is_not_finite_cuts_its_row_and_is_told_at_the_next_read(
    value: float,
) -> None:
    env, whole = made(), made()
    env.reset()
    whole.reset()
    plan = actions(env, 4)
    same(env.step(plan[0]), whole.step(plan[0]))
    bad = plan[1].clone()
    bad[2, 1] = value
    bad[3] = value
    active = torch.tensor([True, True, True, False])
    step, other = env.step(bad, active), whole.step(plan[1], active)
    assert step.valid.tolist() == [True, True, False, False]
    assert step.truncated.tolist() == [False, False, True, False]
    assert torch.equal(step.obs[:2], other.obs[:2])
    assert int(env.refused()) == 1
    env.step(plan[2])
    for read in (lambda: env.counters, env.state_dict):
        with pytest.raises(NonFiniteAction, match="environment 2 at step 2") as caught:
            read()
        assert (caught.value.env_id, caught.value.index, caught.value.step) == ("Hopper-v5", 2, 2)
        assert "its episode was cut there" in str(caught.value)


def test_worlds_with_more_constraints_than_room_are_cut_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = made(count=16)
    monkeypatch.setitem(worlds.ROOMS, "Hopper", worlds.Room(contacts=16, rows=5))
    env = made(count=16)
    env.reset()
    whole.reset()
    so_far, cut = torch.ones(16, dtype=torch.bool), 0
    before = torch.zeros(16, dtype=torch.bool)
    for action in actions(env, 12):
        step, other = env.step(action), whole.step(action)
        assert other.valid.all()
        assert step.valid[before].all()  # a world that was cut began anew, with room enough
        before = ~step.valid
        cut += int((~step.valid).sum())
        assert torch.equal(step.truncated, ~step.valid)
        so_far &= step.valid
        assert torch.equal(step.final_obs[so_far], other.final_obs[so_far])
    assert 0 < cut < 12 * 16
    assert env.counters == {"physics_resets": 0, "overflow": cut, "bad_obs": 0}


def test_the_solver_of_an_episodes_first_step_sets_out_from_nothing_as_mujocos_does() -> None:
    """An ended world's accelerations, NaN as they may be, are no beginning of the next one's."""
    env = made("HalfCheetah-v5", 3, max_episode_steps=2)
    env.reset()
    first, second = (env.step(action) for action in actions(env, 2))
    assert first.valid.all() and second.truncated.all()
    assert not env._worlds.state["qacc_warmstart"].any()
    env.step(actions(env, 1)[0])
    assert env._worlds.state["qacc_warmstart"].abs().max() > 1


# ---- worlds that differ ------------------------------------------------------------------------

RANGES: Any = {"mass": (0.6, 1.6), "friction": (0.4, 1.8), "damping": (0.5, 2.0)}


def test_each_world_moves_as_mujoco_does_with_that_world_s_model() -> None:
    env = made(count=5, seed=7, randomise=RANGES)
    env.reset()
    drawn = variety.factors(RANGES, 7, 5)
    assert all(len(np.unique(each)) == 5 for each in drawn.values())
    model = native.opened("Hopper-v5", {}).template.model
    plain, alike = made(count=5, seed=7), 0
    plain.reset()
    own, data = copy.copy(model), physics.mujoco.MjData(model)
    begun = env._qpos.double().numpy().copy(), env._qvel.double().numpy().copy()
    plan = actions(env, 8)
    for action in plan:
        step, other = env.step(action), plain.step(action)
        alike += int((step.final_obs - other.final_obs).abs().amax() < 1e-3)
        assert not (step.terminated | step.truncated).any()
    assert alike == 0  # the factors matter from the first step on
    for i in range(5):
        variety.vary(own, data, model, {kind: float(each[i]) for kind, each in drawn.items()})
        assert own.body_mass.sum() == pytest.approx(drawn["mass"][i] * model.body_mass.sum())
        physics.mujoco.mj_resetData(own, data)
        data.qpos[:], data.qvel[:] = begun[0][i], begun[1][i]
        for action in plan[:, i]:
            data.ctrl[:] = action.numpy()
            physics.mujoco.mj_step(own, data, nstep=4)
        assert np.abs(env._qpos[i].numpy() - data.qpos).max() < 1e-4
    saved = env.state_dict()
    again = made(count=5, seed=1, randomise=RANGES)
    again.reset()
    again.load_state_dict(saved)
    assert same(env.step(plan[0]), again.step(plan[0]))


def test_factors_do_not_depend_on_what_else_is_varied_or_how_many_worlds_there_are() -> None:
    every = variety.factors(RANGES, 3, 9)
    alone = variety.factors({"damping": RANGES["damping"]}, 3, 4)["damping"]
    assert np.array_equal(every["damping"][:4], alone)
    assert not np.array_equal(variety.factors(RANGES, 4, 9)["mass"], every["mass"])
    for kind, (low, high) in RANGES.items():
        assert ((every[kind] >= low) & (every[kind] <= high)).all()


# ---- what is said and refused ------------------------------------------------------------------


def test_compiling_that_takes_long_is_said_on_the_way_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worlds, "PATIENCE", 0.05)
    with caplog.at_level(logging.INFO, logger="rheo"), worlds.patient("Hopper-v5", "/cache"):
        time.sleep(0.2)
    assert "Hopper-v5: compiling kernels, 0 s so far" in caplog.text
    assert "kernels compiled in 0 s and kept in /cache" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="rheo"), worlds.patient("Hopper-v5", "/cache"):
        pass
    assert caplog.text == ""


def test_more_worlds_than_memory_holds_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="rheo"):
        made()
    assert "Hopper-v5: 4 worlds take about 0.1 MB on cpu" in caplog.text
    monkeypatch.setattr(worlds, "free_memory", lambda device: 2e8)
    with pytest.raises(EnvError, match=r"take about .* GB on cpu, and 0.20 GB are free; lower"):
        made(count=100_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": "Pendulum-v1"}, r"no warp backend \(it exists for HalfCheetah-v5, .*backend=auto"),
        ({"id": "dm_control/fish-swim-v0"}, "no warp backend.*use env.backend=(native|auto)"),
        ({"id": "Hopper-v5", "workers": 2}, "on one device, which is quicker"),
        ({"id": "Hopper-v5", "render_mode": "rgb_array"}, "rendering option.*backend=gymnasium"),
        ({"id": "Hopper-v5", "healthy_rewards": 2.0}, "did you mean 'healthy_reward'"),
        ({"randomise": {"masses": [1, 2]}}, "env.randomise.masses: can be mass, friction, damping"),
        ({"randomise": {"mass": 1.2}}, r"mass=1.2: must be \[lowest, highest\]"),
        ({"randomise": {"mass": [0, 2]}}, "must be .* of a factor above 0"),
        ({"randomise": {"mass": [2, 1]}}, "the lowest factor comes first"),
        (
            {"randomise": {"mass": [1, 2]}, "backend": "gymnasium"},
            "share one model; set env",
        ),
        ({"id": "Humanoid-v5", "randomise": {"mass": [1, 2]}}, "observes inertias.*leave mass out"),
        ({"id": "Hopper-v5", "device": "meta"}, "runs on cuda or cpu; device=meta is neither"),
    ],
)
def test_what_it_lacks_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make(**{"id": "Hopper-v5", "num_envs": 1, "backend": "warp", **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_warp_does_not_see_is_refused() -> None:
    with pytest.raises(EnvError, match="update the NVIDIA driver, or set device=cpu"):
        made(device="cuda:0")


def test_a_model_that_it_does_not_simulate_is_refused(tmp_path: Path) -> None:
    own: Any = gymnasium_make("Hopper-v5", {}).unwrapped
    text = Path(own.fullpath).read_text()
    file = tmp_path / "hopper.xml"
    file.write_text(text.replace("</mujoco>", '<option><flag fwdinv="enable"/></option></mujoco>'))
    with pytest.raises(
        EnvError, match="Hopper-v5: MuJoCo Warp does not simulate this model.*FWDINV"
    ):
        made(xml_file=str(file))
