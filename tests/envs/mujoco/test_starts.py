"""Beginnings that are drawn on the host for worlds on a device."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from rheo.envs.families import home, register, vector
from rheo.envs.mujoco import fetch, hands, native, physics, starts
from rheo.envs.mujoco.starts import BANK, Maker, bank_row
from rheo.envs.suites import make

CPU = torch.device("cpu")
TASKS = [env_id for env_id in native.TASKS if home(env_id)[0] == "gymnasium"]
HAS = find_spec("gymnasium_robotics") is not None
HANDS = [name for name in hands.TASKS if HAS and "Sparse" not in name]
ARM = [name for name in fetch.TASKS if HAS and "Dense" not in name]


def maker(env_id: str) -> Maker:
    register(env_id)
    one = native.opened(env_id, {})
    return Maker(one.kind, one.template, one.settings, one.obs_dim)


@pytest.fixture(autouse=True)
def few_beginnings() -> None:
    """As many as there are outside tests."""


@pytest.mark.skipif(not physics.available(), reason="mujoco.batch came with 3.17")
@pytest.mark.parametrize("env_id", [*TASKS, *HANDS, *ARM])
def test_row_i_is_what_environment_i_of_the_other_backends_begins_with(env_id: str) -> None:
    first = maker(env_id).from_seed(11, 3, CPU)
    batched = make(env_id, 3, seed=11, backend="native", threads=1)
    assert torch.equal(first.obs, batched.reset())
    assert first.obs.abs().sum() > 0
    memory = batched._task.memory()  # type: ignore[attr-defined]
    for name, value in memory.items():
        assert np.array_equal(first.memory[name].numpy(), value.astype(np.float32))
    for i in range(3):
        own = vector(env_id, {})
        obs, _ = own.reset(seed=11 + i)
        assert np.array_equal(first.obs[i].numpy(), obs.astype(np.float32))
        data = own.unwrapped.data  # type: ignore[attr-defined]
        assert np.array_equal(first.qpos[i].numpy(), data.qpos.astype(np.float32))
        assert np.array_equal(first.qvel[i].numpy(), data.qvel.astype(np.float32))


def test_a_bank_is_fixed_by_its_seed_and_no_row_is_a_first_episode_s() -> None:
    made = maker("Hopper-v5")
    bank, again, other = made.bank(3, CPU), made.bank(3, CPU), made.bank(4, CPU)
    assert bank.obs.shape == (BANK, 11)
    assert torch.equal(bank.qpos, again.qpos)
    assert not torch.equal(bank.qpos, other.qpos)
    assert len(bank.qpos.unique(dim=0)) == BANK
    first = made.from_seed(3, 8, CPU).qpos
    assert not (bank.qpos[:, None] == first[None]).all(2).any()
    picked = bank.rows(torch.tensor([7, 7, 0]))
    assert torch.equal(picked.obs[0], bank.obs[7])
    assert torch.equal(picked.position[2], bank.position[0])


def test_beginnings_that_rest_are_shared_among_threads_without_changing_a_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside one after another; of one generator, which goes on alike, and of several."""
    pytest.importorskip("dm_control", reason="needs pip install 'rheo-rl[dmc]'")
    monkeypatch.setattr(starts, "cores", lambda: 3)
    made = maker("dm_control/cheetah-run-v0")
    one, two = (np.random.default_rng(5) for _ in range(2))
    apart = [np.random.default_rng(seed) for seed in range(7)]
    for ours, theirs in ([one] * 7, [two] * 7), (apart, [copy.deepcopy(each) for each in apart]):
        rows, others = made.shared(ours), made.begun(theirs)
        for row, other in zip(rows, others, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(row[:4], other[:4], strict=True))
        assert len({row[0].tobytes() for row in rows}) == 7
        assert [each.random() for each in ours] == [each.random() for each in theirs]


def test_every_world_meets_the_whole_bank_and_those_of_one_row_part_at_once() -> None:
    world, episodes = torch.tensor([0, 5, 5 + BANK, 5 + 2 * BANK]), torch.arange(BANK)
    rows = torch.stack([bank_row(world, episode) for episode in episodes], 1)
    assert (rows.sort(1).values == episodes).all()
    assert rows[:, 0].tolist() == [0, 5, 5, 5]
    assert len(rows[1:, 1].unique()) == 3
    assert len(rows[1:, 2].unique()) == 3
