"""Some parts of an observation, where an environment observes more."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..errors import EnvError, nearest
from .parts import listed_parts, names, places
from .pixels import Images


class ChosenParts(gymnasium.ObservationWrapper):
    """The parts of an observation vector that `keys` name, in that order, images behind them.

    parts: of the whole, with their widths; images: those among them, all of which stay in their
    order, as a camera that nobody looks through need not be asked for. Raises EnvError for a part
    that is not there, or twice, or an image that is left out.
    """

    def __init__(
        self, env: gymnasium.Env, parts: dict[str, int] | None, images: Images, keys: Any
    ) -> None:
        super().__init__(env)
        if not isinstance(keys, Sequence) or isinstance(keys, str) or not keys:
            raise EnvError(f"obs_keys={keys!r}: a list of names is needed, obs_keys=[NAME,...]")
        if parts is None:
            raise EnvError(
                f"obs_keys={names(map(str, keys))}: its observation is one vector without names"
            )
        for key in keys:
            if key not in parts:
                near = nearest(str(key), parts)
                raise EnvError(
                    f"obs_keys: it observes no {key!r}{near}; it observes {listed_parts(parts)}"
                )
        if len(set(keys)) < len(keys):
            raise EnvError(f"obs_keys={names(keys)}: names a part twice")
        unseen = [key for key in images if key not in keys]
        if unseen:
            raise EnvError(
                f"obs_keys={names(keys)} leaves out {unseen[0]}, which is drawn: name it, or leave "
                "its camera out"
            )
        chosen = [*(key for key in keys if key not in images), *images]
        self.parts = {key: parts[key] for key in chosen}
        where = places(parts)
        columns = [np.arange(where[key][0], sum(where[key])) for key in chosen]
        self.columns = np.concatenate(columns)
        box: Any = env.observation_space
        self.observation_space = spaces.Box(
            box.low[self.columns], box.high[self.columns], dtype=np.float64
        )

    def observation(self, observation: NDArray) -> NDArray:
        return observation[self.columns]
