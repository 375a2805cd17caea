"""What a frozen policy is worth before it is steered, and whether it is worth steering."""

import logging
from typing import Any

import numpy as np

from rheo.envs.chunk import ChunkEnv
from rheo.envs.rollout import Deploy, Episode, evaluate
from rheo.errors import RheoError

from .config.top import EVAL_SEED

log = logging.getLogger("rheo")
TRIES = 4  # per initial state: what the best of so many noises reaches


def gate(algo: Any, env: Any, episodes: int) -> dict[str, float]:
    """Evaluates the base: from its own noise, through the noise map, best of TRIES, stepwise.

    Returns are means over `episodes` from fixed initial states, or success rates where there is
    such a notion; best of TRIES takes the best episode of each initial state, which is about what
    steering the first noise of an episode alone could reach. Stepwise, the base plans anew after
    every action of its chunks: what that mends need not be learned. Raises RheoError when the map
    keeps less than algo.gate of the base's worth.
    """
    if env is None or not hasattr(algo, "unsteered"):
        return {}
    plain = [worths(algo, env, algo.unsteered, episodes, k) for k in range(TRIES)]
    full, best = float(plain[0].mean()), float(np.max(plain, 0).mean())
    mapped = float(worths(algo, env, algo.mapped, episodes, 0).mean())
    told = {"base/worth": full, "base/mapped_worth": mapped, "base/best_worth": best}
    text = (
        f"{full:.4g} from its own noise, {mapped:.4g} through algo.noise_map, "
        f"{best:.4g} as the best of {TRIES} per initial state"
    )
    if env.execute > 1:
        short = ChunkEnv(env.env, execute=1, obs_steps=env.obs_steps, gamma=env.gamma)
        stepwise = float(worths(algo, short, algo.unsteered, episodes, 0).mean())
        told["base/stepwise_worth"] = stepwise
        text += f", {stepwise:.4g} with a new plan after every action (env.execute=1)"
    log.info("base: %s (%d episodes each)", text, episodes)
    if algo.gate > 0 and mapped < full - (1 - algo.gate) * abs(full):
        raise RheoError(
            f"algo.noise_map: the base keeps {mapped:.4g} of {full:.4g} when its noise goes "
            f"through the map, less than algo.gate={algo.gate:g} of it; raise "
            "algo.noise_map.rows, or set algo.gate=0 to steer it all the same"
        )
    return told


def worths(algo: Any, env: Any, act: Deploy, episodes: int, attempt: int) -> np.ndarray:
    """Return or success of each episode [episodes]; attempts differ in the policy's noise only."""
    device = str(algo.generator.device)
    rows = evaluate(env, act, episodes, EVAL_SEED, device, noise_seed=EVAL_SEED + attempt)
    return np.array([worth(row) for row in rows])


def worth(row: Episode) -> float:
    """Success at any step where the environment tells, else the return."""
    return row.ret if row.success_once is None else float(row.success_once)
