"""A file that another program exported, opened as a module of obs and noise."""

import importlib
import importlib.util
import io
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RheoError
from . import vetting
from .formats import ONNX

HOW = (
    "export the module to .onnx (torch.onnx.export), or with torch.export.save to .pt2; a program "
    "of TorchScript is read too"
)
CONTAINED = "model is one file: save it with external_data=False"


def prepared(data: bytes, ending: str) -> Callable[[], nn.Module]:
    """What reads the program in a file's content, after what `vetting` looks at.

    ending: of its name. Only files that end in .onnx are read as ONNX, and they as nothing else.
    Raises ValueError that says what the file is instead, or what it may not hold.
    """
    other = kind(data, ending)
    if other is not None:
        raise ValueError(f"{other}, not a program: {HOW}")
    try:
        if ending == ONNX:
            refuse_elsewhere(package("onnx").load_model_from_string(data))
            return partial(Onnx, data)
        if ending == ".pt2" or is_archive(data):
            return partial(exported, vetting.vetted(data))
        vetting.refuse_script(data)
        return partial(scripted, data)
    except RheoError:
        raise
    except Exception as error:  # each format has its own
        raise unreadable(error) from error


def opened(data: bytes, ending: str) -> nn.Module:
    """The program in a file's content: `prepared`, and read. Raises ValueError."""
    read = prepared(data, ending)
    try:
        return read()
    except Exception as error:  # each format has its own
        raise unreadable(error) from error


def exported(archive: io.BytesIO) -> nn.Module:
    """The program of an archive that was vetted."""
    return torch.export.load(archive).module()


def scripted(data: bytes) -> nn.Module:
    """The program of TorchScript whose source was vetted."""
    module = torch.jit.load(io.BytesIO(data))
    vetting.refuse_graph(module)
    return module


def unreadable(error: Exception) -> ValueError:
    """What is said of a file that is no program, or not one that is read."""
    return ValueError(
        "cannot be read as an exported program (ONNX, torch.export.save to .pt2, or TorchScript): "
        f"{first_line(error)}"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def members(data: bytes) -> set[str]:
    """Paths inside an archive, below its top folder; empty for a file that is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return set()


def is_archive(data: bytes) -> bool:
    """Whether a file is an archive of torch.export, whatever it is called."""
    return any(name.startswith("models/") for name in members(data))


def kind(data: bytes, ending: str) -> str | None:
    """What a file holds that is often taken for a program; None for anything else.

    Nothing of it is executed: pickles are looked at as weights only.
    """
    if ending == ".safetensors":
        return "a file of weights alone (safetensors)"
    inside = members(data)
    if "data.pkl" not in inside or any(name.startswith("code/") for name in inside):
        return None
    try:
        held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - whatever the pickle needs
        return "a pickled Python object (torch.save of a whole module or optimiser)"
    if isinstance(held, Tensor):
        return "a tensor (torch.save)"
    if isinstance(held, Mapping) and held and all(isinstance(x, Tensor) for x in held.values()):
        return f"a state_dict, the weights alone of {len(held)} tensors"
    return f"a {type(held).__name__} of weights and settings (torch.save), perhaps a checkpoint"


class Onnx(nn.Module):
    """A program of ONNX, on the CPU by onnxruntime: tensors in the order of its inputs -> its first
    output.

    Its operators compute and do nothing else; what names another file (external data) is refused.
    Raises RheoError without onnxruntime.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__()
        runtime = package("onnxruntime")
        how, on = runtime.SessionOptions(), ["CPUExecutionProvider"]
        how.intra_op_num_threads, how.log_severity_level = torch.get_num_threads(), 4
        self.session: Any = runtime.InferenceSession(data, how, providers=on)
        self.names = [one.name for one in self.session.get_inputs()]

    def forward(self, *given: Tensor) -> Tensor:
        """The answer on the device of the first input."""
        fed = {name: x.cpu().numpy() for name, x in zip(self.names, given, strict=True)}
        return torch.from_numpy(self.session.run(None, fed)[0]).to(given[0].device)


def package(name: str) -> Any:
    """A package of the extra. Raises RheoError without it."""
    if importlib.util.find_spec(name) is None:
        raise RheoError(f"an .onnx needs {name}: pip install 'rheo-rl[onnx]'")
    return importlib.import_module(name)


def refuse_elsewhere(message: Any) -> None:
    """Raises ValueError for a model whose numbers lie in another file, anywhere in it."""
    if getattr(message, "external_data", None) or getattr(message, "data_location", 0) == 1:
        raise ValueError(f"its numbers lie in another file; a {CONTAINED}")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if hasattr(value, "__len__") else [value]:
                refuse_elsewhere(one)
