"""Meta-World's fifty tasks, third version (arXiv:1910.10897): `metaworld/drawer-open-v3`."""

import functools
import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

HORIZON = 500
KIND = "-goal-observable"


@functools.cache
def tasks() -> dict[str, Any]:
    """Class of each task, its goal among the observations."""
    classes = importlib.import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    return {name.removesuffix(KIND): kind for name, kind in classes.items()}


class MetaWorld(gymnasium.Env):
    """One task, object and goal drawn anew at every reset, as in MT1.

    Args:
        task: Meta-World's name of the task, which the id decides.
        observe_goal: Whether the goal is observed; false leaves zeros in its place, as in ML1.
        sparse: Whether a solved step pays 1 and every other one 0; false: Meta-World's shaped
            reward.
        stop: Whether success ends an episode; else solved steps pay until the time is up.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    repeats = True

    def __init__(
        self, task: str, observe_goal: bool = True, sparse: bool = False, stop: bool = False
    ) -> None:
        self.env = tasks()[task](seed=0)
        self.env._freeze_rand_vec, self.env.seeded_rand_vec = False, True
        self.env._partially_observable = not observe_goal
        self.env.touching_object = functools.partial(touching, self.env)
        self.sparse, self.stop = sparse, stop
        self.observation_space = spaces.Box(-np.inf, np.inf, self.env.observation_space.shape)
        self.action_space = spaces.Box(-1.0, 1.0, self.env.action_space.shape)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.env.seed(seed)
        return self.env.reset()[0], {}

    def step(self, action: NDArray) -> tuple[NDArray, float, bool, bool, dict[str, Any]]:
        obs, reward, _, cut, info = self.env.step(np.asarray(action, np.float64))
        success = bool(info["success"] > 0)
        paid = float(success) if self.sparse else float(reward)
        return obs, paid, self.stop and success, bool(cut), {"success": success}

    def bit_generators(self) -> list[Any]:
        """What the task draws from."""
        return [self.env.np_random.bit_generator]

    @property
    def data(self) -> Any:
        """MuJoCo's data, whose warnings the guards read."""
        return self.env.data

    @property
    def model(self) -> Any:
        """MuJoCo's model, for cameras."""
        return self.env.model

    def close(self) -> None:
        self.env.close()


def touching(env: Any, geom: int) -> bool:
    """Whether both of the gripper's pads press on a geometry.

    Meta-World's own answer from arrays: it makes an object of every contact, in Python and twice a
    step, which is a quarter of the step.
    """
    contact, forces = env.data.contact, env.data.efc_force
    met = (contact.geom == geom).any(axis=1)
    for pad in ("leftpad_geom", "rightpad_geom"):
        pressed = met & (contact.geom == env.data.geom(pad).id).any(axis=1)
        if not sum(forces[contact.efc_address[pressed]]) > 0:
            return False
    return True


def register() -> None:
    """Makes `metaworld/TASK` known to gymnasium."""
    for task in tasks():
        if f"metaworld/{task}" not in gymnasium.registry:
            gymnasium.register(
                f"metaworld/{task}",
                f"{__name__}:MetaWorld",
                max_episode_steps=HORIZON,
                kwargs={"task": task},
            )
