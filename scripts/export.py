"""`rheo export RUN`: a run's policy as one program that needs nothing of Rheo, and its contract.

The program is the deployed behaviour from an observation to a plan: normaliser, encoder, sampler
and what chooses among samples, to actions in the environment's units. What it draws are inputs, so
it is a function: whoever calls it brings the noise. The contract, a JSON file beside it, says what
goes in and comes out.
"""

import importlib.util
import io
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rheo.envs.paths import expanded
from rheo.envs.views import seconds_of
from rheo.errors import RheoError
from rheo.files import atomically, put_bytes, put_text, sha256
from rheo.policies.normalize import affine
from rheo.policies.programs import Onnx

from .config.exporting import Exporting
from .policy import Policy
from .program import KINDS, Given, Program
from .store.provenance import versions
from .store.run import Run
from .store.where import digest
from .worlds import real

log = logging.getLogger("rheo")
VERSION = 1  # of the contract
CHECKED, SEEN = 1000, 100  # inputs that are compared, and where they have images
TIMED, WARM = 500, 20  # calls that are timed, and before them
FEWEST, LONGEST = 100, 1.0  # calls that are timed of a slow program, and seconds for more of them
TOLERANCE = 1e-6  # of the range of actions
TIES = 0.01  # share of inputs whose samples may be worth the same but for rounding
LARGEST = 1 << 16  # rows of a batch
MODULES = {".onnx": ("onnx", "onnxscript", "onnxruntime")}
Call = Callable[..., Tensor]


def main(asked: Exporting) -> int:
    """Writes the program and its contract, and says how they compare with the run."""
    policy = Policy(asked.run, flags=[*asked.flagged, "device=cpu"])
    if policy.corrects:
        raise RheoError(
            f"{policy.run.path}: a {type(policy.algo).__name__} run is two programs, one of plans "
            "and one that corrects each of their actions; act with rheo.load in Python"
        )
    if policy.algo.climbs:
        raise RheoError(
            f"{policy.run.path}: actions of a {type(policy.algo).__name__} run climb its critic, "
            "whose gradient a program cannot hold; act with rheo.load in Python"
        )
    torch.set_num_threads(1)  # as a robot calls it, one observation at a time
    out = expanded(asked.out or f"{policy.run.path.name}.pt2")
    if out.exists():
        raise RheoError(f"out={out}: exists; choose another name")
    program = Program(policy, asked.units == "unit")
    call = written(program, out)
    told = out.with_name(f"{out.name}.json")
    try:
        total, difference, ties = compared(program, call, policy)
        p50, p99 = latency(program, call)
        contract = described(program, policy, out, asked.units)
        contract["checked"] = {"inputs": total, "difference": difference, "ties": ties}
        contract["latency_ms"] = {"p50": p50, "p99": p99, "batch": 1, "threads": 1}
        put_text(told, json.dumps(contract, indent=1) + "\n")
    except RheoError:  # a program without its contract says nothing of its inputs
        out.unlink()
        raise
    rows = 1 if program.single else "B"
    inputs = ", ".join(f"{one.name} {[rows, *one.shape]}" for one in program.inputs)
    print(f"{out}: ({inputs}) -> action {[rows, *program.size]}".replace("'", ""))
    same = f"differs from the run by {difference:.1e} of the range of actions at most"
    same += f", but for {ties} whose samples are worth the same" if ties else ""
    print(f"{total} random inputs: {same}")
    print(f"one observation takes {p50:.2f} ms (median), {p99:.2f} ms (99 of 100); contract {told}")
    return 0


# ---- files ---------------------------------------------------------------------------------------


def written(program: Program, out: Path) -> Call:
    """Writes a program, and gives what calls the file. Raises RheoError."""
    example = tuple(example_of(program, 1 if program.single else 3))
    rows = torch.export.Dim("batch", min=1, max=LARGEST)
    shapes = None if program.single else (tuple({0: rows} for _ in example),)
    try:
        with torch.no_grad():
            made = torch.export.export(program, example, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever an operation without a rule makes it raise
        name, text = type(program.algo).__name__, str(error).strip().splitlines()[0]
        raise RheoError(f"a {name} cannot be exported: {text}") from error
    if out.suffix == ".onnx":
        return onnx(program, made, example, out)
    archive = io.BytesIO()  # torch's writer of files does not say what the disk refused
    torch.export.save(made, archive)
    put_bytes(out, archive.getvalue())
    return torch.export.load(out).module()


def onnx(program: Program, made: Any, example: tuple[Tensor, ...], out: Path) -> Call:
    """Writes ONNX, and gives what calls the file. Raises RheoError without its packages."""
    lacking = [name for name in MODULES[".onnx"] if importlib.util.find_spec(name) is None]
    if lacking:
        raise RheoError(f"an .onnx needs {', '.join(lacking)}: pip install 'rheo-rl[onnx]'")
    names = [one.name for one in program.inputs]
    kind = {"input_names": names, "output_names": ["action"], "verbose": False}
    made = torch.onnx.export(made, example, dynamo=True, **kind)
    assert made is not None
    atomically(out, lambda part: made.save(str(part)))
    return Onnx(out.read_bytes())


# ---- what is said of it --------------------------------------------------------------------------


def example_of(program: Program, rows: int) -> list[Tensor]:
    """Random inputs of so many rows, observations as far out as the policy's statistics say."""
    generator, found = torch.Generator().manual_seed(0), []
    for one in program.inputs:
        shape = (rows, *one.shape)
        if one.dtype == "uint8":
            found.append(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        elif one.name == "waiting":
            found.append(torch.empty(shape).exponential_(generator=generator))
        else:
            found.append(torch.randn(shape, generator=generator))
    norm = getattr(program.algo.policy, "obs_norm", None)
    if norm is not None and norm.kind != "none" and not program.images:
        numbers = affine(norm)
        if numbers.shift.numel() == found[0].shape[1]:
            found[0] = found[0] * numbers.scale + numbers.shift
    return found


def compared(program: Program, call: Call, policy: Policy) -> tuple[int, float, int]:
    """Inputs that were compared, the largest difference from the run's own deployment, of the range
    of actions, and how many inputs were decided otherwise. Raises RheoError where the file does
    something else.
    """
    total = SEEN if program.single else CHECKED
    given = example_of(program, total)
    count = len(program.inputs) - 1 - len(program.images)
    drawn = {k: x.flatten(1) for k, x in zip(KINDS, given[1 : 1 + count], strict=False)}
    pairs = zip(given[0], *given[1 + count :], strict=True)
    obs = torch.stack([program.seen(one, images) for one, *images in pairs])
    half = 1.0 if program.identity else program.get_buffer("half_range")
    with torch.no_grad():
        seen = obs if program.eye is None else program.eye.encode(obs)
        action = program.algo.deploy(seen, Given(**drawn))
        wanted = program.in_units(action)
        parts = zip(*(each.split(1 if program.single else total) for each in given), strict=True)
        answers = torch.cat([call(*part) for part in parts])
        apart = ((answers - wanted) / (2 * half)).abs().flatten(1).amax(1)
    other = apart > TOLERANCE
    chosen = any(one.numbers > wanted[0].numel() for one in program.draws)  # among samples
    ties = int(other.sum()) if chosen else 0
    largest = float(apart[~other].max()) if ties else float(apart.max())
    if largest > TOLERANCE or ties > TIES * total:
        raise RheoError(
            f"{policy.run.path}: the program differs from the run by {float(apart.max()):.1e} of "
            f"the range of actions in {int(other.sum())} of {total} inputs, which is no rounding"
        )
    return total, largest, ties


def latency(program: Program, call: Call) -> tuple[float, float]:
    """Milliseconds of a call for one observation: the median, and what 99 of 100 stay below."""
    given, times, begun = example_of(program, 1), [], time.perf_counter()
    with torch.no_grad():
        for count in range(WARM + TIMED):
            start = time.perf_counter()
            if count >= WARM + FEWEST and start - begun > LONGEST:
                break
            call(*given)
            times.append(1e3 * (time.perf_counter() - start))
    p50, p99 = np.percentile(times[WARM:], [50, 99])
    return float(p50), float(p99)


def described(program: Program, policy: Policy, out: Path, units: str) -> dict[str, Any]:
    """The contract: all that a caller has to know, in plain types."""
    run, unit = policy.run, np.ones(program.size[1])
    low, high = (-unit, unit) if units == "unit" else (policy.action_low, policy.action_high)
    env = real(run.config["env"] or {})
    batch = 1 if program.single else "batch"
    inputs = [
        {"name": name, "shape": [batch, *shape], "dtype": dtype, "meaning": meaning}
        for name, shape, dtype, meaning in program.inputs
    ]
    return {
        "contract": VERSION,
        "program": out.name,
        "sha256": sha256(out),
        "inputs": inputs,
        "observation": {
            "parts": {k: v for k, v in policy.obs_parts.items() if k not in policy.images},
            "images": {k: list(size) for k, size in program.images.items()},
            "steps": program.steps,
        },
        "output": {
            "name": "action",
            "shape": [batch, *program.size],
            "units": units,
            "low": np.asarray(low).tolist(),
            "high": np.asarray(high).tolist(),
        },
        "plan": {
            "steps": program.size[0],
            "executed": policy.execute,
            "learned": policy.usable,  # of the steps, the first ones
        },
        "rate_hz": rate(run),
        "run": str(run.path),
        "step": run.step,
        "algorithm": type(program.algo).__name__,
        "environment": env.get("id"),
        "checkpoint_sha256": digest(run.path, run.step),
        "versions": versions(),
    }


def rate(run: Run) -> float | None:
    """Decisions' steps per second of the environment's time; None where nothing tells."""
    told = run.meaning().get("dt")
    env = real(run.config["env"] or {})
    if not told and env.get("id"):
        told = seconds_of(env["id"], dict(env.get("options") or {}))
    return None if not told else round(1 / float(told), 6)
