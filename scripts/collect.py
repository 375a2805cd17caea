"""`rheo collect`: a policy's experience as a data set, and data sets of graded quality."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from rheo.envs.data.recording import Recording, joined
from rheo.envs.data.writing import write
from rheo.envs.paths import expanded
from rheo.envs.scores import normalized_score
from rheo.errors import RheoError, nearest

from .behaviours import Maker, Options, Source
from .config.words import divide
from .store.provenance import versions
from .store.run import put_text

USAGE = (
    "usage: rheo collect RUN|ACTOR.npz|random out=FILE [env=NAME] [steps=N | episodes=N]\n"
    "                    [noise=0] [sample=true|false] [seed=0] [num_envs=20]\n"
    "       rheo collect set=random|medium|medium_replay|medium_expert|expert out=FILE\n"
    "                    env=NAME actors=FOLDER|FILE,FILE,... [steps=1000000]"
)
KEYS = {  # what may follow, with what is meant without
    **{"out": None, "env": None, "steps": None, "episodes": None, "noise": 0.0},
    **{"sample": False, "seed": 0, "num_envs": 20, "set": None, "actors": None},
}
SETS = ("random", "medium", "medium_replay", "medium_expert", "expert")


def main(argv: list[str]) -> int:
    """Collects and writes a data set with its card."""
    words = divide(argv, KEYS)
    named, options = words.runs, parse(words.options)
    if len(named) != (options.set is None):
        raise RheoError(USAGE)
    out = expanded(options.out)
    if out.suffix not in (".hdf5", ".npz"):
        raise RheoError(f"out={options.out}: must end in .hdf5 or .npz")
    if out.exists():
        raise RheoError(f"out={options.out}: exists; choose another name")
    maker = Maker(options, words.flagged)
    if options.set is None:
        parts = [(Source(named[0], options.noise, options.sample), options.steps)]
    else:
        parts = maker.plan(options.set)
    recordings, sources = [], []
    for index, (source, steps) in enumerate(parts):
        recording = maker.record(source, steps, options.seed + 1000 * index)
        recordings.append(recording)
        sources.append(about(source) | figures(recording, maker))
        print(f"{source.name}: {describe(sources[-1])}", flush=True)
    whole = recordings[0] if len(recordings) == 1 else joined(recordings)
    finish(out, whole, maker, options, sources)
    return 0


def finish(
    out: Path, recording: Recording, maker: "Maker", options: Options, sources: list[dict[str, Any]]
) -> None:
    """Writes the file and its card, and says so."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write(recording, out, env_id=maker.env_id)
    card = {
        "file": out.name,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "env_id": maker.env_id,
        "set": options.set,
        "seed": options.seed,
        "sources": sources,
        **figures(recording, maker),
        "versions": versions(),
    }
    put_text(out.with_name(f"{out.name}.card.json"), json.dumps(card, indent=1) + "\n")
    print(f"{out}: {maker.env_id}, {describe(card)}; card {out.name}.card.json")


def parse(words: list[str]) -> Options:
    """The options of key=value words. Raises RheoError naming the bad one."""
    values: dict[str, Any] = dict(KEYS)
    kinds = {"steps": int, "episodes": int, "seed": int, "num_envs": int, "noise": float}
    extra = []
    for word in words:
        key, _, text = word.partition("=")
        if key.startswith("env."):
            extra.append(word)
        elif key not in values:
            raise RheoError(f"unknown option {key!r}{nearest(key, values)}\n{USAGE}")
        elif key == "sample":
            if text not in ("true", "false"):
                raise RheoError(f"{word}: must be true or false")
            values[key] = text == "true"
        elif key in kinds:
            values[key] = number(word, text, kinds[key])
        else:
            values[key] = text
    if values["out"] is None:
        raise RheoError(f"out=FILE has to be given\n{USAGE}")
    if values["steps"] is not None and values["episodes"] is not None:
        raise RheoError("steps= and episodes= contradict each other; give one of them")
    if values["set"] is not None:
        refuse_set(values)
    if values["episodes"] is None and values["steps"] is None:
        values["steps"] = 1_000_000 if values["set"] else 10_000
    return Options(**values, words=extra)


def number(word: str, text: str, kind: type[int] | type[float]) -> Any:
    """A number that is not negative (counts: at least 1). Raises RheoError."""
    try:
        value = kind(text)
    except ValueError as error:
        raise RheoError(f"{word}: must be a number ({kind.__name__})") from error
    if value < 0 or value != value or (value == 0 and word.split("=")[0] not in ("noise", "seed")):
        raise RheoError(f"{word}: must be positive")
    return value


def refuse_set(values: dict[str, Any]) -> None:
    """Raises RheoError for a set that cannot be built."""
    if values["set"] not in SETS:
        raise RheoError(f"set={values['set']}: must be one of {', '.join(SETS)}")
    if values["episodes"] is not None:
        raise RheoError("set= is measured in steps; give steps= instead of episodes=")
    if values["env"] is None:
        raise RheoError("set= needs env=NAME, for example env=hopper_v4")
    if values["set"] != "random" and values["actors"] is None:
        raise RheoError(
            f"set={values['set']} needs actors=FOLDER of .npz actors, or actors=RUN,RUN,... of "
            "runs of different quality (rheo train algo=sac env=NAME, stopped at other steps)"
        )


def about(source: Source) -> dict[str, Any]:
    """A source's part of a card; files are named by their content too."""
    path = expanded(source.name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
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
