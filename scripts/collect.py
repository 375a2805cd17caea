"""`rheo collect`: a policy's experience as a data set, and data sets of graded quality."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rheo.envs.data.recording import Recording, joined
from rheo.envs.data.writing import write
from rheo.envs.paths import expanded
from rheo.envs.scores import normalized_score
from rheo.files import put_text, sha256

from .behaviours import Maker, Source
from .config.verbs import Collecting
from .store.provenance import versions


def main(asked: Collecting) -> int:
    """Collects and writes a data set with its card."""
    maker = Maker(asked)
    if asked.set is None:
        parts = [(Source(asked.names[0], asked.noise, asked.sample), asked.steps)]
    else:
        parts = maker.plan(asked.set)
    recordings, sources = [], []
    for index, (source, steps) in enumerate(parts):
        recording = maker.record(source, steps, asked.seed + 1000 * index)
        recordings.append(recording)
        sources.append(about(source) | figures(recording, maker))
        print(f"{source.name}: {describe(sources[-1])}", flush=True)
    whole = recordings[0] if len(recordings) == 1 else joined(recordings)
    finish(expanded(asked.out), whole, maker, asked, sources)
    return 0


def finish(
    out: Path, recording: Recording, maker: Maker, asked: Collecting, sources: list[dict[str, Any]]
) -> None:
    """Writes the file and its card, and says so."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write(recording, out, env_id=maker.env_id)
    card = {
        "file": out.name,
        "sha256": sha256(out),
        "env_id": maker.env_id,
        "set": asked.set,
        "seed": asked.seed,
        "sources": sources,
        **figures(recording, maker),
        "versions": versions(),
    }
    put_text(out.with_name(f"{out.name}.card.json"), json.dumps(card, indent=1) + "\n")
    print(f"{out}: {maker.env_id}, {describe(card)}; card {out.name}.card.json")


def about(source: Source) -> dict[str, Any]:
    """A source's part of a card; files are named by their content too."""
    path = expanded(source.name)
    digest = sha256(path) if path.is_file() else None
    return {**source._asdict(), "name": path.name, "sha256": digest}


def figures(recording: Recording, maker: Maker) -> dict[str, Any]:
    """Steps, and the returns of whole episodes: those that the end of the collection cut say less.

    Without a whole episode there are no returns.
    """
    lengths = np.diff(recording.ends, prepend=0)
    assert recording.reward is not None
    returns = np.add.reduceat(recording.reward.astype(np.float64), recording.ends - lengths)
    limit = maker.max_steps or np.inf
    returns = returns[recording.terminated[recording.ends - 1] | (lengths >= limit)]
    card = {"steps": int(recording.ends[-1]), "episodes": len(lengths), "whole": len(returns)}
    if not len(returns):
        return card
    mean = float(returns.mean())
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
    return text + (f", noise {card['noise']:g}" if card.get("noise") else "")
