"""Demonstrations: episodes of the script that solves a task, played one after the other."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ..errors import EnvError
from . import families
from .data.demos import FLAT, Demo
from .data.recording import Part, Recording, Sizes, stack
from .guard import close, own, reset_warnings, sound, told, truth
from .manipulation.plans import drawing
from .manipulation.registry import told_of
from .manipulation.scripted import script_of
from .mujoco import snapshot
from .parts import places
from .pixels import pack, unpacked

log = logging.getLogger("rheo")
GIVE_UP = 10  # attempts for each demonstration that is wanted
SAID = 30.0  # seconds after which, again and again, the count is said
NOISE, DRAWS = 1, 2  # tell the noise's seeds, and a script's own, from the environment's
STOPPING = {  # the option by which success ends an episode, and whether it does without
    **dict.fromkeys(("robosuite/", "metaworld/"), ("stop", False)),
    **dict.fromkeys(("cube-", "scene-", "puzzle-"), ("terminate_at_goal", True)),
}


class Demonstrations:
    """Episodes of an environment's script. They are played while they are iterated over.

    Attempt i starts from seed + i and has noise of its own. What the environment was told is kept:
    the script's action plus noise (of deviation `noise` times the script's `spread`), clipped to
    [-1, 1], in float32. An attempt goes on until `past` steps beside the first were solved, as
    people do, or its time is up, and is a success if its last step is solved. By default 5; where
    success never ends an episode (Fetch) all that there are: the goal has to be held until then.

    options: the environment's. episodes: how many are kept. keep: "success" discards the others.
    attempts, successes, kept: counted so far. broken: what ended the iteration early, None if
    nothing did; the demonstrations before it hold. halt: asked before each attempt for a reason to
    end there.

    Raises EnvError for an environment without a script.
    """

    def __init__(
        self,
        env_id: str,
        options: Mapping[str, Any],
        *,
        episodes: int,
        noise: float = 0.0,
        keep: Literal["success", "all"] = "success",
        past: int | None = None,
        seed: int = 0,
        halt: Callable[[], str | None] = lambda: None,
    ) -> None:
        families.register(env_id)
        self.script = script_of(env_id)
        self.id, self.episodes, self.noise, self.keep = env_id, episodes, noise, keep
        self.seed, self.halt = seed, halt
        self.attempts = self.successes = self.kept = 0
        self.broken: str | None = None
        self.told = told_of(env_id, options)
        stopping = [STOPPING[start] for start in STOPPING if env_id.startswith(start)]
        self.past = (5 if stopping else math.inf) if past is None else past
        self.stops = any(options.get(option, usual) for option, usual in stopping)
        same = {**options, **self.told.get("env_options", {})}  # as it is told, so made anew
        self.env = families.make(env_id, same | {option: False for option, _ in stopping})
        width = self.env.observation_space.shape
        assert width is not None
        self.observed = families.parts_of(self.env) or {FLAT: width[0]}  # by a policy
        self.images = families.images_of(self.env)
        self.step = 0

    def start(self) -> NDArray:
        """A new attempt's first observation [Do]."""
        self.step = 0
        return self.env.reset(seed=self.seed + self.attempts)[0]

    def parts(self, obs: NDArray) -> dict[str, NDArray]:
        """What is kept of a step: at least the parts of `obs` [Do]."""
        spans, shown = places(self.observed), getattr(self.env.unwrapped, "shown", None)
        held = {key: obs[at : at + width].copy() for key, (at, width) in spans.items()}
        images = {key: unpacked(held[key], size[0]) for key, size in self.images.items()}
        return (held if shown is None else shown()) | images

    def seen(self, kept: dict[str, NDArray]) -> Mapping[str, NDArray]:
        """What the script sees of a step: all that robosuite observes, elsewhere what is kept.

        Or what it looks at itself.
        """
        if self.script.sees is not None:
            return self.script.sees(self.env)
        return getattr(self.env.unwrapped, "seen", kept)

    def __iter__(self) -> Iterator[Demo]:
        due = perf_counter() + SAID
        while self.kept < self.episodes:
            self.broken = self.halt()
            if self.broken:
                return
            if self.attempts >= GIVE_UP * self.episodes:
                self.broken = f"{self.id}: given up after {self.attempts} attempts"
                return
            try:
                demo = self.attempt()
            except BaseException as error:
                if not own(error) and not isinstance(error, EnvError):
                    raise
                self.broken = f"{self.place()}: {told(error)}"
                return
            self.attempts += 1
            if demo is not None:
                self.kept += 1
                yield demo
            if perf_counter() > due:
                due += SAID
                text = "%s: %d of %d demonstrations in %d attempts"
                log.info(text, self.id, self.kept, self.episodes, self.attempts)

    def place(self) -> str:
        """'Id-v0, attempt 3 (seed 10), step 12'."""
        seed = self.seed + self.attempts
        return f"{self.id}, attempt {self.attempts} (seed {seed}), step {self.step}"

    def attempt(self) -> Demo | None:
        """One episode; None where it is discarded."""
        seed = self.seed + self.attempts
        rng, bits = np.random.default_rng((NOISE, seed)), np.random.MT19937((DRAWS, seed))
        kept, states, actions, rewards = [self.parts(self.start())], [], [], []
        xml = self.model()
        plan = drawing(self.script.plan(self.seen(kept[0])), bits)
        action = next(plan)
        solved, success, over = 0, False, False
        while not over:
            states.append(state_of(self.env))
            actions.append(self.noisy(action, rng))
            self.step += 1
            obs, reward, ends, cut, info = self.env.step(actions[-1])
            if self.unsound(obs, reward):
                log.warning("%s: the physics broke; the attempt is discarded", self.place())
                return None
            kept.append(self.parts(obs))
            rewards.append(float(reward))
            success = bool(truth(info.get(families.success_key(info) or "")))
            solved += success
            over = bool(ends or cut or solved > self.past)
            action = action if over else plan.send(self.seen(kept[-1]))
        self.successes += success
        if not success and self.keep == "success":
            return None
        told_env = np.stack(actions).astype(np.float64), np.array(rewards)
        ended, places = success and self.stops, None if states[0] is None else np.stack(states)
        return Demo(table(kept), *told_env, ended, places, xml)

    def model(self) -> str | None:
        """The model's XML, where the environment gives it."""
        model = getattr(self.env.unwrapped, "model_xml", None)
        return None if model is None else model()

    def noisy(self, action: NDArray, rng: np.random.Generator) -> NDArray:
        """What the environment is told [Da], float32."""
        noise = self.noise * np.array(self.script.spread) * rng.standard_normal(len(action))
        return np.clip(action + noise, -1, 1).astype(np.float32)

    def unsound(self, obs: NDArray, reward: Any) -> bool:
        """Whether the simulator reset itself inside a step, or gave a number that is none."""
        data = snapshot.simulator(self.env)
        reset = data is not None and data.warning.number[reset_warnings()].any()
        return bool(reset) or not (sound(obs) and sound(np.asarray(reward, float)))

    def about(self) -> dict[str, Any]:
        """What data of these episodes tell of their environment and their observations."""
        parts: dict[str, Any] = {"obs_keys": list(self.observed)}
        parts["obs_widths"] = list(self.observed.values())
        images = {key: list(size) for key, size in self.images.items()}
        parts |= {"obs_images": images} if images else {}
        return {"env_id": self.id, **parts, **self.told}

    def close(self) -> None:
        """Frees what the environment holds open."""
        close(self.env, self.id)


def table(rows: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
    """Parts of observations, one after the other."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def state_of(env: gymnasium.Env) -> NDArray | None:
    """The simulator's state as robomimic keeps it: time, positions, velocities; None without."""
    own: Any = getattr(env.unwrapped, "sim_state", None)
    if own is not None:
        return own()
    data = snapshot.simulator(env)
    return None if data is None else np.concatenate([[data.time], data.qpos, data.qvel])


def recording_of(demos: Iterable[Demo], about: Mapping[str, Any]) -> Recording:
    """Demonstrations as a recording of what `about` says that a policy observes."""
    parts = []
    for demo in demos:
        held = (demo.obs[key] for key in about["obs_keys"])
        rows = [pack(one) if one.dtype == np.uint8 and one.ndim == 4 else one for one in held]
        obs = np.concatenate(rows, axis=1)
        steps, none = len(demo.action), np.empty(0, np.int64)
        parts.append(Part(obs[:steps], demo.action, demo.reward, demo.terminated, obs[steps], none))
    steps, count = sum(len(part.action) for part in parts), len(parts)
    sizes = Sizes(steps, count, count, parts[0].obs.shape[1], parts[0].action.shape[1], True)
    return stack("memory", parts, sizes, "ram", dict(about))
