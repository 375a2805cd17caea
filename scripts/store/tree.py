"""Trees of states <-> JSON and tensors. Nothing is ever pickled.

A tree is nested dicts, lists and tuples around None, bool, int of any size (generator states are
128 bits wide), float, str, torch tensors, numpy arrays and numpy scalars, and tables that only
grow (`envs.rows`). JSON has no place for some of these, so `{"$tag": ...}` marks them.
"""

import math
import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rheo.envs.rows import Rows
from rheo.errors import MACHINE, RheoError

PART = re.compile(r"[A-Za-z0-9_]+")
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Broken(RheoError):
    """A checkpoint that cannot be trusted: incomplete, truncated, altered or of another format."""

    def __init__(self, message: str) -> None:
        super().__init__(message, MACHINE)


class Packed(NamedTuple):
    """A tree taken apart: its structure as JSON, tensors by file and key, growing tables by key."""

    state: Any
    tensors: dict[str, dict[str, Tensor]]
    rows: dict[str, Rows]


def pack(tree: dict[str, Any]) -> Packed:
    """Takes a tree apart: tensors of `tree[name]` go to the file `name`, all else is JSON.

    Leaves: None, bool, int of any size, float, str, torch tensors, numpy arrays and scalars, Rows.
    Raises TypeError with the place of anything else.
    """
    packed = Packed({}, {}, {})
    for name in tree:
        if not PART.fullmatch(name):
            raise TypeError(f"checkpoint part {name!r}: use letters, digits and underscores")
        packed.state[name] = encode(tree[name], "", name, packed)
    return packed


def encode(node: Any, place: str, file: str, packed: Packed) -> Any:
    """The JSON form of a node; its tensors are added to those of `file`."""
    if node is None or isinstance(node, (bool, str)) or type(node) is int:
        return node
    if type(node) is float:
        return node if math.isfinite(node) else {"$float": repr(node)}
    if isinstance(node, Tensor):
        return {"$tensor": put(node, place, file, packed.tensors)}
    if isinstance(node, Rows):
        key = re.sub(r"[^A-Za-z0-9_]", "_", f"{file}.{place}")
        key += "_" * (key in packed.rows)
        packed.rows[key] = node
        return {"$rows": key}
    if isinstance(node, (np.ndarray, np.generic)):
        kind = "$array" if isinstance(node, np.ndarray) else "$scalar"
        return {kind: put(from_numpy(node, f"{file}.{place}"), place, file, packed.tensors)}

    def inner(key: object, value: Any) -> Any:
        return encode(value, f"{place}.{key}" if place else str(key), file, packed)

    if isinstance(node, dict):
        plain = all(isinstance(key, str) and not key.startswith("$") for key in node)
        if plain:
            return {key: inner(key, value) for key, value in node.items()}
        return {"$dict": [[inner("key", k), inner(k, v)] for k, v in node.items()]}
    if type(node) in (list, tuple):
        items = [inner(index, value) for index, value in enumerate(node)]
        return items if type(node) is list else {"$tuple": items}
    raise TypeError(f"checkpoint {file}.{place}: {type(node).__name__} cannot be saved")


def put(tensor: Tensor, place: str, file: str, tensors: dict[str, dict[str, Tensor]]) -> str:
    """Files a tensor under a free key."""
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided:
        raise TypeError(f"checkpoint {file}.{place}: {tensor.dtype} tensors cannot be saved")
    held = tensors.setdefault(file, {})
    key = place or "value"
    while key in held:
        key += "_"
    held[key] = tensor.detach()
    return key


def from_numpy(value: Any, place: str) -> Tensor:
    """A tensor with an array's numbers. Raises TypeError for text and objects."""
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except TypeError as error:
        message = f"checkpoint {place}: arrays of {value.dtype} cannot be saved"
        raise TypeError(message) from error


def unpack(packed: Packed) -> dict[str, Any]:
    """The tree that `pack` took apart."""
    return {
        name: decode(part, packed.tensors.get(name, {}), packed.rows)
        for name, part in packed.state.items()
    }


def decode(node: Any, tensors: dict[str, Tensor], rows: dict[str, Rows]) -> Any:
    """A node from its JSON form."""
    if isinstance(node, list):
        return [decode(item, tensors, rows) for item in node]
    if not isinstance(node, dict):
        return node
    tag = next(iter(node), "")
    if len(node) != 1 or not tag.startswith("$"):
        return {key: decode(value, tensors, rows) for key, value in node.items()}
    value = node[tag]
    match tag:
        case "$float":
            return float(value)
        case "$tensor":
            return tensors[value]
        case "$array":
            return tensors[value].numpy()
        case "$scalar":
            return tensors[value].numpy()[()]
        case "$tuple":
            return tuple(decode(item, tensors, rows) for item in value)
        case "$dict":
            return {decode(k, tensors, rows): decode(v, tensors, rows) for k, v in value}
        case "$rows":
            return rows[value]
    raise Broken(f"state.json: unknown tag {tag!r}")
