"""What environments answer, in this process and in others', and what they may do to our arrays."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rheo.envs import guard
from rheo.envs.suites import make
from rheo.errors import EnvFault

HERE = Path(__file__).resolve().parent
FAULTY = "faulty:Faulty-v0"
REFUSED = {
    **{"wrong shape": "shape (4,), but its", "scalar obs": "shape (), but its"},
    **{"no obs": "the observation has None", "dict obs": "the observation has {'x': "},
    **{"text obs": "the observation's type is <U1", "no reward": "the reward is None"},
    **{"text reward": "the reward is '1'", "two rewards": "the reward is an array of shape (2,)"},
    **{"nan terminated": "the terminated is nan", "no info": "info is None"},
    "four values": "step returned a tuple of 4 values",
    **{"RuntimeError": "raised RuntimeError", "ValueError": "raised ValueError"},
    **{"FloatingPointError": "raised FloatingPointError", "SystemExit": "raised SystemExit: 0"},
    "KeyboardInterrupt": "step raised KeyboardInterrupt",
    **{"SIGKILL": "its process was ended by SIGKILL", "SIGSEGV": "its process was ended by SIG"},
    **{"sleeps": "no answer for 2 s (env.step_timeout)", "spins": "no answer for 2 s"},
}
CUT = ("nan obs", "inf obs", "1e30 obs", "1e200 obs", "nan reward", "inf reward", "1e300 reward")


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setattr(guard, "_said", set())


@pytest.mark.parametrize("fault", REFUSED)
def test_a_worker_tells_of_a_fault_as_one_process_does(fault: str, caplog: Any) -> None:
    """The first time it is replaced, the second time that is the end."""
    env = make(
        FAULTY, 1, seed=7, workers=1, step_timeout=2.0, restarts=0, backend="gymnasium",
        fault=fault, at=3,
    )  # fmt: skip
    try:
        env.reset()
        for _ in range(2):
            assert env.step(torch.zeros(1, 1)).valid.all()
        with pytest.raises(EnvFault) as caught:
            env.step(torch.zeros(1, 1))
        assert f"{FAULTY}, environment 0 (seed 7, episode 1), step 3: " in str(caught.value)
        assert REFUSED[fault] in str(caught.value)
    finally:
        env.close()


def test_workers_cut_and_tell_what_one_process_does(caplog: Any) -> None:
    """Once, however many of them meet it."""
    for fault in CUT:
        env = make(FAULTY, 2, seed=7, workers=2, backend="gymnasium", fault=fault, at=3)
        env.reset()
        steps = [env.step(torch.zeros(2, 1)) for _ in range(3)]
        assert steps[-1].truncated.all() and not steps[-1].valid.any()
        assert env.counters["bad_obs"] == 2
        env.close()
    told = [record.getMessage() for record in caplog.records if "cut and not" in record.message]
    assert len(told) == 2  # of an observation, and of a reward


class Grasping(gymnasium.Env):
    """Keeps one array for all observations, and writes to the actions that it is given."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1e3, 1e3, (2,), np.float32)
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.seen = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seen[:] = 0
        return self.seen, {}

    def step(self, action: Any) -> Any:
        self.seen += 1
        action[:] = 9
        return self.seen, 0.0, False, False, {}


class Restless(Grasping):
    """Has a generator of another kind than gymnasium's."""

    np_random: Any = np.random.RandomState(0)  # noqa: NPY002

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seen[:] = 0
        return self.seen, {}


@pytest.fixture
def grasping() -> Any:
    for name, kind in {"RheoGrasping-v0": Grasping, "RheoRestless-v0": Restless}.items():
        gymnasium.register(name, kind, max_episode_steps=9)
    yield
    for name in ("RheoGrasping-v0", "RheoRestless-v0"):
        gymnasium.registry.pop(name)


def test_arrays_that_an_environment_keeps_or_writes_to_are_its_own(grasping: None) -> None:
    env = make("RheoGrasping-v0", 2)
    first, action = env.reset(0), torch.zeros(2, 2)
    steps = [env.step(action) for _ in range(3)]
    assert first.tolist() == [[0, 0]] * 2
    assert [step.obs[0].tolist() for step in steps] == [[1, 1], [2, 2], [3, 3]]
    assert action.tolist() == [[0, 0]] * 2


def test_a_generator_that_cannot_be_saved_is_told(grasping: None, caplog: Any) -> None:
    env = make("RheoRestless-v0", 2)
    env.reset(0)
    state = env.state_dict()
    assert "its generator cannot be saved (AttributeError" in caplog.text
    assert make("RheoRestless-v0", 2).load_state_dict(state) is not None


def test_copies_whose_actions_differ_are_refused(grasping: None, monkeypatch: Any) -> None:
    made: list[int] = []
    begin = Grasping.__init__

    def other(self: Any) -> None:
        begin(self)
        made.append(1)
        self.action_space = spaces.Box(-len(made), len(made), (2,))

    monkeypatch.setattr(Grasping, "__init__", other)
    with pytest.raises(EnvFault, match=r"environment 1 .*its action_space is now Box\(-2.0"):
        make("RheoGrasping-v0", 2)
