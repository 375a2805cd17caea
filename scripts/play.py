"""`rheo play RUN`: a film of a run's policy, or of several side by side, or a window.

Its episodes are those of `rheo eval RUN episodes=N`, one after the other: the same environment as
gymnasium steps it, with somebody who looks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import torch
from numpy.typing import NDArray

from rheo.envs import families
from rheo.envs.adapter import GymnasiumVector
from rheo.envs.guard import close, number, truth
from rheo.envs.noise import TILE
from rheo.envs.paths import expanded
from rheo.envs.rollout import Deploy, Episode, evaluate, rows_of
from rheo.envs.views import Renderer, Window, has_model, step_seconds
from rheo.errors import MACHINE, EnvFault, RheoError
from rheo.policies.critics import QEnsemble

from .assemble import entered, make_env, prepare, refuse_mute, revived
from .config.playing import Playing
from .fast import fast_deploy
from .films import Caption, captioned, side_by_side, write
from .store.run import Run
from .worlds import real, refuse_other_world

ROUNDING = 1e-9  # seconds
FRAMES = 20_000  # of a film: more would not fit into memory


class Filmed(gymnasium.Wrapper):
    """Draws a frame of every 1/fps seconds of an environment's own time, captions beside it.

    frames: of each episode. A window's viewer is told instead, at the pace of that time.
    """

    def __init__(
        self, env: gymnasium.Env, view: Callable[[], NDArray | None], every: float
    ) -> None:
        super().__init__(env)
        self.view, self.every, self.seconds = view, every, step_seconds(env)
        self.frames: list[list[tuple[NDArray, Caption]]] = []
        self.caption, self.due = Caption(), 0.0

    def reset(self, **given: Any) -> Any:
        """As the environment; a film begins."""
        result = self.env.reset(**given)
        if self.caption.seconds:  # the episode before is over, however it ended
            self.frames[-1][-1][1].over = True
        self.caption = Caption(q=self.caption.q)
        self.frames.append([])
        self.due = self.every
        self.look()
        return result

    def step(self, action: Any) -> Any:
        """As the environment; a frame where one is due."""
        result = self.env.step(action)
        now = self.caption
        now.seconds += self.seconds
        now.used += 1
        try:
            _, reward, ends, cut, info = result
            solved = families.success_key(info)
            now.ret += number(reward) or 0.0
            now.solved = now.solved or bool(solved and truth(info[solved]))
            now.over = bool(truth(ends) or truth(cut))
        except (TypeError, ValueError):  # who asked for the step names what is wrong with it
            return result
        if now.over or now.seconds >= self.due - ROUNDING:
            self.look()
        while self.due <= now.seconds + ROUNDING:
            self.due += self.every
        return result

    def look(self) -> None:
        """A frame of now."""
        image = self.view()
        if image is not None:
            if sum(map(len, self.frames)) >= FRAMES:
                raise RheoError(
                    f"more than {FRAMES} frames: ask for fewer episodes, or a lower fps="
                )
            self.frames[-1].append((image, self.caption.copy()))

    def planned(self, q: float | None, steps: int) -> None:
        """A new plan of so many executed steps begins, worth q."""
        self.caption.q, self.caption.used, self.caption.steps = q, 0, steps


class Played(NamedTuple):
    """One run's films."""

    title: str
    episodes: list[Episode]
    frames: list[list[tuple[NDArray, Caption]]]


def main(asked: Playing) -> int:
    """Plays every run that was named, and writes the film. Raises RheoError."""
    shows = [played(name, asked) for name in asked.runs]
    for show in shows:
        worth = ", ".join(
            f"{one.ret:.1f}" + ("" if one.success_once is None else " solved" * one.success_once)
            for one in show.episodes
        )
        print(f"{show.title}: return {worth}")
    if asked.window:
        return 0
    film: list[NDArray] = []
    for i in range(asked.episodes):
        films = [
            [captioned(image, show.title, caption) for image, caption in show.frames[i]]
            for show in shows
        ]
        film += side_by_side(films)
    out = expanded(asked.out or f"{Path(asked.runs[0]).name}.gif")
    write(film, out, asked.fps)
    print(f"{out}: {len(film)} frames, {len(film) / asked.fps:.1f} s")
    return 0


def played(name: str, asked: Playing) -> Played:
    """The episodes of one run, looked at. Raises RheoError."""
    run = Run.open(name, asked.flagged)
    refuse_mute(run)
    prepare(run.config)
    run.config["env"] = real(run.config["env"] or {})
    if not run.config["env"].get("id"):
        raise RheoError(f"{run.path}: learned from data without an environment to play in")
    run.config["env"] |= {"backend": "gymnasium", "workers": 0, "randomise": {}, "cost": {}}
    run.config["env"]["options"] = drawn_options(run.config["env"])
    env = make_env(run.config, 1)
    assert env is not None
    algo, sizes = revived(run)
    refuse_other_world(env, sizes, run)
    vector = innermost(env.env)
    films: list[Filmed] = []

    def put(inner: gymnasium.Env) -> gymnasium.Env:
        view: Any = Renderer(inner, asked.size, asked.camera)
        if asked.window:
            view = Window(inner, 1 / asked.fps)
        films.append(Filmed(inner, view, asked.speed / asked.fps))
        return films[-1]

    vector.wrap(put)
    acting = entered(algo, env, asked.seed)
    deploy = Watching(algo, fast_deploy(algo, run.config["fast"], TILE), films[0], env.execute)
    device = str(algo.generator.device)
    spread = rows_of(asked.episodes)  # as an evaluation of so many is
    try:
        rows = evaluate(acting, deploy, asked.episodes, asked.seed, device, algo.ended, rows=spread)
    except EnvFault as error:
        raise RheoError(str(error), MACHINE) from error
    finally:
        acting.close()
    rows.sort(key=lambda row: (row.env, row.episode))  # as they were played
    whole = [frames for frames in films[0].frames if frames[-1][1].over]  # not a reset's alone
    return Played(run.path.name, rows, whole)


class Watching:
    """A deployed behaviour that tells what it decided and what its critic expects of that."""

    def __init__(self, algo: Any, deploy: Deploy, film: Filmed, execute: int) -> None:
        self.deploy, self.film, self.execute = deploy, film, execute
        critic = algo.action_critic()
        self.critic = critic if type(critic) is QEnsemble else None  # of actions as they are

    def __call__(self, obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        plan = self.deploy(obs, generator)
        q = None
        if self.critic is not None and self.critic.fits(obs, plan):
            with torch.no_grad():
                q = float(self.critic(obs[:1], plan[:1]).amin(0))
        self.film.planned(q, self.execute)
        return plan


def drawn_options(node: dict[str, Any]) -> dict[str, Any]:
    """An environment's options, asked to draw itself where it has no model to be drawn from."""
    options = dict(node["options"] or {})
    families.register(node["id"])
    env = families.make(node["id"], options)
    modes, drawable = env.unwrapped.metadata.get("render_modes", ()), has_model(env)
    close(env, node["id"])
    if drawable:
        return options
    if "rgb_array" not in modes:
        raise RheoError(f"env.id={node['id']}: neither draws itself nor has a model of MuJoCo's")
    return options | {"render_mode": "rgb_array"}


def innermost(env: Any) -> GymnasiumVector:
    """The vector environment under what encodes its images."""
    while not isinstance(env, GymnasiumVector):
        env = env.env
    return env
