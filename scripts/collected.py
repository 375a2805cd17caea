"""What was collected, and how it is written: a data set with a card that says what is in it."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rheo.envs.data.recording import Recording, joined
from rheo.envs.data.writing import write
from rheo.envs.paths import expanded
from rheo.envs.scores import normalized_score
from rheo.errors import RheoError
from rheo.files import put_text, sha256

from .config.verbs import Collecting
from .rescue import kept
from .store.provenance import versions

if TYPE_CHECKING:
    from .collect import Maker


class Source(NamedTuple):
    """One behaviour: where it comes from and how much noise is added."""

    name: str  # random, an actor's file or a run folder
    noise: float
    sample: bool


class Kept:
    """What was collected, part after part. source: whose part is under way."""

    def __init__(self, maker: "Maker", asked: Collecting) -> None:
        self.maker, self.asked = maker, asked
        self.recordings: list[Recording] = []
        self.sources: list[dict[str, Any]] = []
        self.source = Source("random", 0.0, False)

    def add(self, recording: Recording) -> None:
        """Takes the part under way, and says what it is."""
        self.maker.so_far = lambda _: None
        self.recordings.append(recording)
        self.sources.append(about(self.source) | figures(recording, self.maker))
        print(f"{self.source.name}: {describe(self.sources[-1])}", flush=True)

    def write(self, stopped: str | None) -> None:
        """Writes all with its card; stopped: why it is not all that was asked for."""
        parts = self.recordings
        whole = parts[0] if len(parts) == 1 else joined(parts)
        if stopped is not None:
            whole = whole._replace(about=whole.about | {"stopped": stopped})
        finish(expanded(self.asked.out), whole, self.maker, self.asked, self.sources)

    def rescued(self, why: str) -> str:
        """Writes what there is while the environment does not answer, and says where it is.

        Called by another thread than the one that collects, before the process ends.
        """
        try:
            recording = self.maker.so_far(why)
            if recording is not None:
                self.add(recording)
            if not self.recordings:
                return "nothing was collected yet"
            self.write(why)
        except (RheoError, OSError) as error:
            return f"what was collected could not be written: {error}"
        return f"what was collected until then is in {self.asked.out}"


def finish(
    out: Path,
    recording: Recording,
    maker: "Maker",
    asked: Collecting,
    sources: list[dict[str, Any]],
) -> None:
    """Writes the file and its card, and says so."""
    recording = recording._replace(about={**recording.about, **maker.told()})
    out, refused = kept(partial(write, recording, layout=asked.layout), out)
    card = {
        "file": out.name,
        "sha256": sha256(out),
        "env_id": maker.env_id,
        "set": asked.set,
        "seed": asked.seed,
        "sources": sources,
        "obs_keys": list(maker.parts),
        "stopped": recording.about.get("stopped"),
        **figures(recording, maker),
        "versions": versions(),
    }
    put_text(out.with_name(f"{out.name}.card.json"), json.dumps(card, indent=1) + "\n")
    print(f"{out}: {maker.env_id}, {describe(card)}; card {out.name}.card.json")
    if refused is not None:
        raise refused


def about(source: Source) -> dict[str, Any]:
    """A source's part of a card; files are named by their content too."""
    path = expanded(source.name)
    digest = sha256(path) if path.is_file() else None
    return {**source._asdict(), "name": path.name, "sha256": digest}


def figures(recording: Recording, maker: "Maker") -> dict[str, Any]:
    """Steps, and the returns of whole episodes: those that the end of the collection cut say less.

    Without a whole episode there are no returns.
    """
    lengths = np.diff(recording.ends, prepend=0)
    assert recording.reward is not None
    returns = np.add.reduceat(recording.reward, recording.starts, dtype=np.float64)
    limit = maker.max_steps or np.inf
    whole = recording.terminated[recording.ends - 1] | (lengths >= limit)
    returns = returns[whole]
    card = {"steps": int(recording.ends[-1]), "episodes": len(lengths), "whole": len(returns)}
    if not len(returns):
        return card
    mean = float(returns.mean())
    if recording.cost is not None:
        costs = np.add.reduceat(recording.cost, recording.starts, dtype=np.float64)
        card |= {"cost_mean": float(costs[whole].mean())}
    return card | {
        "return_mean": mean,
        "return_std": float(returns.std()),
        "return_quantiles": np.quantile(returns, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        "score": normalized_score(maker.env_id, mean),
    }


def describe(card: dict[str, Any]) -> str:
    """A card in a line."""
    text = f"{card['steps']} steps, {card['episodes']} episodes"
    if card["whole"]:
        text += f", return {card['return_mean']:.1f} +- {card['return_std']:.1f}"
        text += f" over {card['whole']} whole ones"
        text += "" if card["score"] is None else f", score {card['score']:.1f}"
        text += f", cost {card['cost_mean']:.1f}" if "cost_mean" in card else ""
    return text + (f", noise {card['noise']:g}" if card.get("noise") else "")
