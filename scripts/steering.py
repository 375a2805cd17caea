"""`rheo eval RUN steer=...`: a run's policy deployed through a chain of `policies.steer`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from rheo.algos.contract import Algorithm
from rheo.errors import RheoError, nearest
from rheo.policies.flow import FlowPolicy
from rheo.policies.steer import Chain, Settings

from .assemble import Sizes, make_algo
from .store.run import Run
from .store.state import restore

log = logging.getLogger("rheo")
FILE = Path(__file__).parents[1] / "configs" / "steer.yaml"
REFERENCE = "steer.reference"


def settings(words: Mapping[str, str]) -> Settings:
    """The numbers of configs/steer.yaml with those of `steer.KEY=VALUE`. Raises RheoError."""
    values = yaml.safe_load(FILE.read_text())
    del values["_target_"]
    values["words"] = words["steer"].split(",")
    for key, text in words.items():
        name = key.partition(".")[2]
        if key in ("steer", REFERENCE):
            continue
        if name not in values or name == "words":
            known = [f"steer.{each}" for each in [*values, "reference"] if each != "words"]
            raise RheoError(f"unknown option {key!r}{nearest(key, known)}")
        kind = type(values[name])
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise RheoError(f"{key}={text}: a number ({kind.__name__}) is needed") from error
    return Settings(**values)


def steered(algo: Algorithm, words: Mapping[str, str], execute: int) -> Any:
    """What is evaluated in place of an algorithm. Raises RheoError for what cannot be steered."""
    policy, critic = algo.deployed(), algo.action_critic()
    if not isinstance(policy, FlowPolicy):
        raise RheoError(f"steer={words['steer']}: of flow and diffusion policies; this run's is a "
                        f"{type(policy).__name__}")  # fmt: skip
    given = words.get(REFERENCE)
    try:
        numbers = settings(words)
        other = None if given is None else reference(given, policy)
        chain = Chain(policy, critic, other, numbers, execute)
    except ValueError as error:
        raise RheoError(str(error)) from error
    own = {"svdd", "doob"} & set(chain.words)  # whose steps have noise of their own
    if algo.noisy_steps and policy.eta > 0 and not own:
        text = "steer=%s: the run's own actions have the noise of its steps (policy.eta=%g), which "
        text += "this leaves out: actions are narrower. steer=svdd and steer=doob have such noise"
        log.warning(text, words["steer"], policy.eta)
    ends = {"ended": chain.ended, "deploy_one": lambda: 1}
    return SimpleNamespace(deploy=chain, generator=algo.generator, policy=None, **ends)


def reference(name: str, policy: FlowPolicy) -> FlowPolicy:
    """The deployed policy of another run. Raises RheoError where the two do not fit."""
    run = Run.open(name, [])
    tree = run.load()
    if tree is None:
        raise RheoError(f"{REFERENCE}={name}: that run has no checkpoint yet")
    algo = make_algo(run.config, Sizes(**tree["sizes"]), run.config["steps"])
    if algo.beyond:
        raise RheoError(
            f"{REFERENCE}={name}: what this {type(algo).__name__} run deploys is {algo.beyond}; "
            "name a run whose policy acts alone, as the base that it started from"
        )
    restore(algo, tree["algo"], generators=False)
    other = algo.deployed()
    mine, theirs = (each_shape(each) for each in (policy, other))
    if mine != theirs:
        raise RheoError(f"{REFERENCE}={name}: its policy is {theirs}, this run's is {mine}")
    return other


def each_shape(policy: Any) -> str:
    """What two policies have to share to be combined step by step."""
    path = type(getattr(policy, "path", None)).__name__
    return f"{type(policy).__name__} of {policy.horizon} x {policy.action_dim} on {path}"
