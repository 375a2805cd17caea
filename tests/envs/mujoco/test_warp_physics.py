"""Tasks on MuJoCo Warp, on its CPU backend: physics and formulas beside MuJoCo's own."""

import logging
from functools import partial

import pytest
import torch
from steps import same

pytest.importorskip("mujoco_warp", reason="needs pip install 'rheo-rl[warp]' (Python 3.11)")

from beside import NEEDS_BATCH, actions, follow, made, trio, two_episodes

from rheo.envs.mujoco import native, physics, worlds
from rheo.envs.suites import make

RESTING = torch.tensor([True, False, True, True])


@NEEDS_BATCH
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Hopper-v4", "HalfCheetah-v5"])
def test_the_first_steps_are_native_s_up_to_float32(env_id: str) -> None:
    ours, theirs = made(env_id, 16, seed=3), make(env_id, 16, seed=3, backend="native", threads=1)
    assert torch.equal(ours.reset(), theirs.reset())
    plan, valid = actions(ours, 10), torch.zeros(())
    for k, action in enumerate(plan, start=1):
        one, two = ours.step(action), theirs.step(action)
        apart = (one.final_obs - two.final_obs).abs().amax(1) / (1 + two.final_obs.abs().amax(1))
        bound = apart.max() if k == 1 or "Hopper" in env_id else apart.median()
        assert bound <= 1e-4, k  # a cheetah whose foot touches the floor earlier is elsewhere
        assert (one.reward - two.reward).abs().median() <= 1e-4
        assert torch.equal(one.terminated, two.terminated)
        valid = one.valid
    assert valid.all()


@NEEDS_BATCH
@pytest.mark.parametrize("env_id", ["Ant-v5", "Humanoid-v5"])
def test_contact_forces_are_observed(env_id: str) -> None:
    ours, theirs = made(env_id, 4, seed=1), make(env_id, 4, seed=1, backend="native", threads=1)
    assert torch.equal(ours.reset(), theirs.reset())
    forces = others = torch.zeros(())
    for action in actions(ours, 60):
        one, two = ours.step(action), theirs.step(action)
        forces, others = one.final_obs[:, -78:], two.final_obs[:, -78:]
        if others.abs().max() > 0.5:
            break
    touched = others.abs() > 0.1
    assert touched.any()
    assert ((forces - others)[touched].abs() / others[touched].abs()).median() <= 1e-2


@NEEDS_BATCH
@pytest.mark.parametrize("kind", ["Door", "Pen"])
def test_hands_are_native_s_wherever_a_reset_has_placed_things(kind: str) -> None:
    """A door's frame too, which no joint moves: MuJoCo Warp looks where it is only once."""
    pytest.importorskip("gymnasium_robotics", reason="needs pip install 'rheo-rl[robotics]'")
    ours, other, theirs = trio(f"AdroitHand{kind}-v1")
    steps = two_episodes((ours, other, theirs), actions(ours, 12), partial(follow, ours, theirs))
    for k, one, two in steps:
        assert one.valid.all()
        assert one.truncated.all() == (k % 6 == 5)
        assert one.success is not None
        bound = 1e-5 if k % 6 < 3 else 2e-2  # then fingers touch, see docs/reference/warp.md
        assert (one.final_obs - two.final_obs).abs().max() <= bound, k
        assert (one.reward - two.reward).abs().max() <= bound


@NEEDS_BATCH
@pytest.mark.parametrize("kind", ["Reach", "PickAndPlaceDense"])
def test_an_arm_is_native_s_as_long_as_it_touches_nothing(kind: str) -> None:
    """Its weld too, whose rows turn with the hand; where each step sets out from is kept."""
    pytest.importorskip("gymnasium_robotics", reason="needs pip install 'rheo-rl[robotics]'")
    ours, other, theirs = trio(f"Fetch{kind}-v4")

    def begin() -> None:
        """The other worlds begin there too, as if nothing had been before."""
        assert ours._bank is not None
        start = ours._bank.rows(torch.arange(4))
        assert torch.equal(ours._obs, start.obs)
        other._begin(other._everywhere, start)
        other._obs.copy_(start.obs)
        other._episode.copy_(ours._episode)
        follow(ours, theirs)
        theirs._task.kept["goal"][:] = start.memory["goal"].numpy()

    plan = actions(ours, 12) + torch.tensor([0.0, 0.0, 0.6, 0.0])  # up
    for k, one, two in two_episodes((ours, other, theirs), plan, begin, RESTING, alike=6):
        assert one.success is not None
        assert (one.final_obs - two.final_obs).abs().max() <= 5e-6, k
        assert (one.reward - two.reward).abs().max() <= 5e-6


@NEEDS_BATCH
@pytest.mark.parametrize("kind", ["Push", "Slide"])
def test_other_arms_begin_and_move_as_native_s_do(kind: str) -> None:
    pytest.importorskip("gymnasium_robotics", reason="needs pip install 'rheo-rl[robotics]'")
    env_id = f"Fetch{kind}-v4"
    ours, theirs = made(env_id, seed=3), make(env_id, 4, seed=3, backend="native", threads=1)
    assert torch.equal(ours.reset(), theirs.reset())
    for action in actions(ours, 3) + torch.tensor([0.0, 0.0, 0.6, 0.0]):  # up
        one, two = ours.step(action), theirs.step(action)
        assert (one.final_obs - two.final_obs).abs().max() <= 5e-6
        assert torch.equal(one.reward, two.reward)


@NEEDS_BATCH
@pytest.mark.parametrize("name", ["cheetah-run", "walker-walk", "hopper-hop", "cartpole-swingup"])
def test_deepmind_control_is_native_s(name: str) -> None:
    """What is derived is of the state after the step, there too."""
    pytest.importorskip("dm_control", reason="needs pip install 'rheo-rl[dmc]'")
    ours, other, theirs = trio(f"dm_control/{name}-v0")
    begin = partial(follow, ours, theirs)
    for k, one, two in two_episodes((ours, other, theirs), actions(ours, 12), begin, RESTING):
        assert not one.terminated.any()
        apart = (one.final_obs - two.final_obs).abs() / (1 + two.final_obs.abs())
        assert apart.max() <= 1e-4, k
        assert (one.reward - two.reward).abs().max() <= 1e-4


@NEEDS_BATCH
def test_touch_is_that_of_the_last_substep_though_positions_are_later() -> None:
    pytest.importorskip("dm_control", reason="needs pip install 'rheo-rl[dmc]'")
    env_id = "dm_control/hopper-hop-v0"
    ours, theirs = made(env_id, 8), make(env_id, 8, seed=0, backend="native", threads=1)
    assert torch.equal(ours.reset(), theirs.reset())
    felt = others = torch.zeros(())
    for action in actions(ours, 60):
        felt, others = (env.step(action).final_obs[:, -2:] for env in (ours, theirs))
        if others.max() > 1:
            break
    touched = others > 1
    assert touched.any()
    assert ((felt - others)[touched].abs() / others[touched]).median() <= 1e-2


def test_an_arm_that_flew_apart_is_whole_in_its_next_episode() -> None:
    """The speeds that a weld's rows are computed by are not the broken ones."""
    pytest.importorskip("gymnasium_robotics", reason="needs pip install 'rheo-rl[robotics]'")
    ours, whole = made("FetchReach-v4"), made("FetchReach-v4")
    ours.reset()
    whole.reset()
    for k, action in enumerate(actions(ours, 5)):
        if k == 2:
            ours._qvel[1] = torch.nan
        step, other = ours.step(action), whole.step(action)
        assert step.valid.tolist() == [True, k != 2, True, True]
        for one, two in zip(step, other, strict=True):
            rows = [0, 2, 3]
            assert one is two is None or torch.equal(one[rows], two[rows])  # type: ignore[index]
    assert ours.counters == {"physics_resets": 1, "overflow": 0, "bad_obs": 0}


def test_the_humanoid_s_solver_is_changed_aloud_and_in_a_copy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = native.opened("Humanoid-v5", {}).template.model
    kinds = physics.mujoco.mjtSolver
    with caplog.at_level(logging.INFO, logger="rheo"):
        ours = worlds.solvable(model, "Humanoid-v5")
    assert (ours.opt.solver, model.opt.solver) == (kinds.mjSOL_NEWTON, kinds.mjSOL_PGS)
    assert "Humanoid-v5: MuJoCo Warp has no PGS solver" in caplog.text


def test_a_recorded_step_is_the_one_that_was_not_recorded() -> None:
    recorded, eager = made(count=3), made(count=3)
    recorded.reset()
    eager.reset()
    eager._worlds.step = eager._worlds.unrecorded  # type: ignore[method-assign]
    for action in actions(recorded, 30):
        assert same(recorded.step(action), eager.step(action))
