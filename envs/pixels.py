"""Images inside a flat observation: one RGB pixel is one exact number.

An observation stays one float vector [..., Do]; its images are its last parts, in order. Whatever
copies, stores, slices or checks observations needs to know nothing of them; `policies.vision` has
the module that unpacks them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIX = "_image"  # a camera's observation is named as robomimic names it
# Heights and widths of an observation's images by part, in their order.
Images = Mapping[str, Sequence[int]]


def pack(images: NDArray) -> NDArray:
    """uint8 [..., H, W, 3] -> float32 [..., H W]: 65536 r + 256 g + b, exact below 2^24.

    Raises ValueError for numbers of another type, which would be other colours.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"an image of {images.dtype}, where uint8 is needed")
    wide = images.astype(np.uint32)
    number = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return number.reshape(*images.shape[:-3], -1).astype(np.float32)


def unpacked(numbers: NDArray, height: int) -> NDArray:
    """float [..., H W] -> uint8 [..., H, W, 3], the inverse of `pack`."""
    whole = numbers.astype(np.uint32).reshape(*numbers.shape[:-1], height, -1)
    return np.stack([whole >> 16, (whole >> 8) & 255, whole & 255], -1).astype(np.uint8)


def is_image(shape: Any, dtype: Any) -> bool:
    """Whether an array of one step is an image: uint8 [H, W, 3]."""
    return len(shape or ()) == 3 and shape[2] == 3 and 0 not in shape and np.dtype(dtype) == "uint8"


def pixels(images: Images) -> int:
    """Numbers that the images of one step take."""
    return sum(map(math.prod, images.values()))


def last(keys: list[str], images: Images) -> list[str]:
    """The parts in order, images behind all others."""
    return sorted(keys, key=lambda key: key in images)


def alike(images: Images, others: Images) -> bool:
    """Whether images can stand for others: of their sizes, and those of the same names in order."""
    sizes = [[list(size) for size in each.values()] for each in (images, others)]
    ordered = set(images) != set(others) or list(images) == list(others)
    return sizes[0] == sizes[1] and ordered


def listed_images(images: Images) -> str:
    """front_image (84 x 84), wrist_image (84 x 84)"""
    return ", ".join(f"{name} ({height} x {width})" for name, (height, width) in images.items())
