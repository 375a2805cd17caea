"""What a run does with images: the eyes of its networks, random shifts, an encoder that is kept."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
import yaml

from rheo.envs.encoded import See
from rheo.envs.pixels import listed_images, pixels
from rheo.envs.shift import Shift
from rheo.errors import RheoError
from rheo.policies.vision import View

from .config.build import offer
from .config.top import HOME

log = logging.getLogger("rheo")


def frozen(cfg: Mapping[str, Any]) -> bool:
    """Whether a run keeps its encoder of images, and learns from the features that it gives."""
    return bool((cfg.get("eye") or {}).get("frozen"))


def features_of(cfg: Mapping[str, Any], images: Mapping[str, Any]) -> int:
    """How many numbers an eye makes of a step's images."""
    shape = {"obs_dim": pixels(images), "images": images, "obs_steps": 1}
    with torch.random.fork_rng(devices=[]):
        return make_eye("none", "", {**shape, "eye": {**cfg["eye"], "frozen": False}}).features


def seeing(algo: Any) -> See:
    """What encodes for a run: the eye of its policy. Raises RheoError where it has none."""
    eye: Any = getattr(algo.policy, "obs_norm", None)
    device = algo.generator.device
    if not hasattr(eye, "see"):
        name = type(algo.policy).__name__
        raise RheoError(f"eye.frozen=true: a {name} has no eye whose encoder could be kept")

    def see(step: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return eye.see(step.to(device)).to(step.device)

    return see


def make_eye(kind: str, place: str, shape: Mapping[str, Any]) -> Any:
    """What stands in place of a normaliser of that kind."""
    view = View(
        shape["obs_dim"], shape["images"], shape["obs_steps"], kind,  # type: ignore[arg-type]
        holds=place == "policy.obs_norm",
    )  # fmt: skip
    return offer(shape["eye"], "eye", view=view)


def give_shift(cfg: Mapping[str, Any], source: Any, sizes: Any) -> None:
    """Lets a source shift images at random before they are learned from; sizes: of its run."""
    pad = (cfg.get("eye") or {}).get("shift")
    if not sizes.images or frozen(cfg) or not pad:
        return
    shift = Shift(sizes.images, sizes.obs_steps, sizes.obs_dim, pad)
    parts: list[Any] = [source, *(getattr(source, name, None) for name in ("replay", "dataset"))]
    for part in [part for part in parts if hasattr(part, "shift")]:
        part.shift = shift


def encode_data(algo: Any, source: Any) -> None:
    """Encodes recorded images once, where a run's encoder is frozen: when its weights are known."""
    eye = getattr(algo.policy, "obs_norm", None)
    if hasattr(source, "encode") and getattr(eye, "frozen", False):
        source.encode(seeing(algo))


def say_images(cfg: Mapping[str, Any], sizes: Any) -> None:
    """Says how images of these sizes are seen. Raises RheoError where an encoder is to be kept and
    there is none.
    """
    eye = cfg.get("eye") or {}
    if sizes.images:
        still = "; its encoder is kept, and the run learns from what it gives" * frozen(cfg)
        text = "images: %s, seen by %s (eye=NAME)%s"
        name = eye["_target_"].rpartition(".")[2]
        log.info(text, listed_images(sizes.images), name, still)
    elif frozen(cfg):
        raise RheoError("eye.frozen=true: there are no images among the observations")
    elif eye and eye != yaml.safe_load((HOME / "eye" / "cnn.yaml").read_text()):
        log.warning("eye: not used, there are no images among the observations")
