"""Formats of programs by the endings of their files; without torch, for whoever only asks."""

from pathlib import PurePath

ONNX = ".onnx"  # operators that compute; the others (.pt2, TorchScript) may do what Python does


def is_code(path: str) -> bool:
    """Whether the program of a file runs as code. Its ending alone decides how it is read."""
    return PurePath(path).suffix != ONNX
