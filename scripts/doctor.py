"""`rheo doctor`: what this machine can do, and how to fix the rest."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

from rheo.errors import EnvError

from .store.provenance import version, versions

CACHE = "set WARP_CACHE_PATH to a folder that you may write to, or each run compiles them anew"
DRAWN = 9  # images whose cost is told by their median
OPTIONAL = {
    "envpool": "pip install 'rheo-rl[envpool]' to compare speeds with it in rheo bench",
    "stable_baselines3": "pip install 'rheo-rl[sb3]' to compare speeds with it in rheo bench",
    "minari": "pip install 'rheo-rl[minari]' to read Minari data sets",
}


class Finding(NamedTuple):
    """One line of the report. status: ok, note (something optional is missing) or bad."""

    status: str
    what: str
    fix: str = ""


def main(_: None = None) -> int:
    """Prints the report; 1 when something that training needs is broken."""
    for package, found in versions().items():
        print(f"     {package} {found or '-'}")
    bad = 0
    for check in CHECKS:
        for finding in attempt(check):
            bad += finding.status == "bad"
            fix = f"\n     -> {finding.fix}" if finding.fix else ""
            print(f"{finding.status:>4} {finding.what}{fix}", flush=True)
    print("ready" if not bad else f"{bad} of the checks failed")
    return 1 if bad else 0


def attempt(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; one that breaks off is a finding itself, whatever broke."""
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - a report must name every fault, not stop at one
        name = check.__name__.replace("_", " ")
        yield Finding("bad", f"{name}: {type(error).__name__}: {error}", "report this line")


def required_packages() -> Iterator[Finding]:
    """Packages that training cannot do without."""
    for name, found in versions().items():
        if found is None:
            yield Finding("bad", f"{name} is missing", f"pip install {name}")


def batched_physics() -> Iterator[Finding]:
    """MuJoCo's thread pool, which the native environments need."""
    import torch

    from rheo.envs.mujoco.physics import available, pool_remedy
    from rheo.envs.suites import make

    if not available():
        fix = pool_remedy()
        yield Finding("note", "mujoco.batch is missing: environments step in a loop, slower", fix)
        return
    env = make("InvertedPendulum-v5", 2, seed=0, backend="native", threads=1)
    env.reset(0)
    good = bool(env.step(torch.zeros(2, env.action_dim)).valid.all())
    env.close()
    yield Finding("ok" if good else "bad", "mujoco.batch steps environments on a thread pool")


def learning() -> Iterator[Finding]:
    """Matrix products, compilation and accelerators."""
    import torch

    from .fast import medium_error, medium_is_exact

    slow, quick = (product_rate(name) for name in ("highest", "medium"))
    yield Finding("ok", f"float32 products {slow:.0f} Gflop/s on {torch.get_num_threads()} threads")
    error, gain = medium_error(), quick / slow
    text = f'"medium" products: {gain:.2f}x the rate, relative error {error:.1e}'
    used = "used for updates" if medium_is_exact() else "not used: they lose accuracy here"
    yield Finding("ok", f"{text}, {used}")
    yield compiles()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("ok", f"GPU: {', '.join(names)}")
    else:
        yield Finding("note", "no GPU that torch can use: runs stay on the CPU")


def worlds_on_a_device() -> Iterator[Finding]:
    """What env.backend=warp needs, which devices it sees, and whether its kernels are kept."""
    from rheo.envs.packages import ENGINES, engine_lacks, pip_install

    lack = engine_lacks("warp")
    if lack is not None:
        what, _, fix = lack.partition("; " if "; " in lack else ": ")
        yield Finding("note", what, fix)
        return
    names = " and ".join(f"{name} {version(name)}" for name in ("mujoco-warp", "warp-lang"))
    apart = unmet("mujoco-warp")
    if apart:
        fix = pip_install(f"--upgrade {ENGINES['warp'][1]}")
        yield Finding("note", f"{names} do not go together with {', '.join(apart)}", fix)
        return
    from rheo.envs.mujoco.worlds import engine

    try:
        warp, _ = engine()
    except OSError as error:  # it makes the folder when it starts
        yield Finding("note", f"{names}: their kernels cannot be kept: {error}", CACHE)
        return
    yield seen(names, [str(each) for each in warp.get_devices()])
    yield kept_kernels(Path(warp.config.kernel_cache_dir))


def unmet(package: str) -> list[str]:
    """What a package asks of those that are installed, and they are not: 'mujoco 3.8 (>=3.13)'."""
    from packaging.requirements import Requirement  # which Hydra brings

    found = []
    for line in metadata.requires(package) or ():
        asked = Requirement(line)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        here = version(asked.name)
        if here is None or not asked.specifier.contains(here, prereleases=True):
            found.append(f"{asked.name} {here or '-'} (asked for: {asked.specifier or 'any'})")
    return found


def seen(names: str, devices: list[str]) -> Finding:
    """Which devices worlds can be on; a GPU that torch has and warp has not wants a driver."""
    import torch

    what = f"{names}: worlds can be on {', '.join(devices)}"
    if torch.cuda.is_available() and not any(each.startswith("cuda") for each in devices):
        return Finding("note", f"{what}, though torch sees a GPU", "update the NVIDIA driver")
    return Finding("ok", what)


def kept_kernels(folder: Path) -> Finding:
    """Whether kernels are kept from run to run, and whether there are some."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"rheo")
    except OSError as error:
        return Finding("note", f"{folder}: kernels cannot be kept: {error.strerror}", CACHE)
    count = sum(each.is_dir() for each in folder.iterdir())
    held = "no kernels yet: the first run on a device compiles them, for a minute or more"
    if count:
        held = f"{count} modules of kernels, which are not compiled again"
    return Finding("ok", f"{folder}: {held}")


def product_rate(precision: str, size: int = 512) -> float:
    """Gflop/s of float32 products under a precision setting."""
    import torch

    from .fast import precision as set_precision

    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    best = float("inf")
    with set_precision(precision):
        for _ in range(8):
            start = perf_counter()
            torch.mm(a, a)
            best = min(best, perf_counter() - start)
    return 2 * size**3 / best / 1e9


def compiles() -> Finding:
    """Whether torch.compile works here (it needs a C++ compiler)."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        fix = "install g++ to use fast=compile; the other modes do not need it"
        return Finding("note", "no C++ compiler: torch.compile does not work", fix)
    import torch

    def double(x: Any) -> Any:
        return x * 2

    start = perf_counter()
    try:
        good = torch.equal(torch.compile(double)(torch.ones(3)), torch.full((3,), 2.0))
    except Exception as error:  # noqa: BLE001 - any failure of the compiler means the same here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding("note", f"torch.compile fails: {reason}", "use fast=precision")
    status = "ok" if good else "bad"
    return Finding(status, f"torch.compile works (first function {perf_counter() - start:.1f} s)")


def disk() -> Iterator[Finding]:
    """Room and permission for run folders."""
    here = Path("runs") if Path("runs").is_dir() else Path(".")
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"rheo")
    except OSError as error:
        fix = "run from a folder that you may write to, or give name=/absolute/path"
        yield Finding("bad", f"cannot write to {here.resolve()}: {error.strerror}", fix)
        return
    free = shutil.disk_usage(here).free / 2**30
    fix = "free some: a checkpoint with a replay of a million steps takes about 0.5 GB" * (free < 2)
    yield Finding("note" if fix else "ok", f"{here.resolve()}: {free:.0f} GB free", fix)


def families_here() -> Iterator[Finding]:
    """Which families of environments of other packages run with the installed versions."""
    from rheo.envs import families
    from rheo.envs.packages import home, pip_install

    running = []
    for name, env_id in families.SAMPLES.items():
        module, package = home(env_id)
        if importlib.util.find_spec(module) is None:
            yield Finding("note", f"{name}: {module} is not installed", pip_install(package))
            continue
        try:
            families.register(env_id)
            families.make(env_id, {}).close()
            running.append(name)
        except EnvError as error:
            what, _, fix = str(error).partition("; ")
            yield Finding("note", f"{name} does not run here: {what}", fix)
    if running:
        yield Finding("ok", f"environments of other packages that run: {', '.join(running)}")


def rendering() -> Iterator[Finding]:
    """Whether cameras can be observed, and what an image costs."""
    from rheo.envs import cameras, families
    from rheo.envs.packages import home

    scenes = {"robosuite/Lift-v0": "agentview", "Hopper-v5": "track"}
    env_id = next(i for i in scenes if importlib.util.find_spec(home(i)[0]) is not None)
    try:
        context = cameras.context()
        families.register(env_id)
        env: Any = families.make(env_id, {"cameras": [scenes[env_id]]})
    except EnvError as error:
        what, _, fix = str(error).partition(": ")
        yield Finding("note", what, fix)
        return
    env.reset(seed=0)
    look, times = env.get_wrapper_attr("look"), []
    for _ in range(DRAWN):
        start = process_time()
        look()
        times.append(process_time() - start)
    env.close()
    cost = 1e3 * sorted(times)[DRAWN // 2]
    by = type(context).__module__.rpartition(".")[2]
    what = f"rendering by {by} works: an image of {cameras.SIZE} pixels of {env_id} takes"
    yield Finding("ok", f"{what} {cost:.1f} ms of processor time")


def optional_packages() -> Iterator[Finding]:
    """Packages that add environments, data formats and comparisons."""
    for module, fix in OPTIONAL.items():
        if importlib.util.find_spec(module) is None:
            yield Finding("note", f"{module} is not installed", fix)
    if importlib.util.find_spec("tensorboard") is None:
        fix = "pip install tensorboard"
        yield Finding("note", "tensorboard is missing: events/ stays empty", fix)


CHECKS = (
    *(required_packages, batched_physics, learning, worlds_on_a_device, disk, families_here),
    *(rendering, optional_packages),
)
