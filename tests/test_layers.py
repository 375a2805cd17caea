"""The house rules that a machine can check: who may import whom, and what is packaged."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LONGEST

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("policies", "algos", "envs", "configs", "scripts")
LIBRARY = {  # folder -> packages of others that it may import, and folders of ours
    "policies": ({"torch", "numpy"}, {"policies", "errors", "files", "ranges", "ranks"}),
    "algos": (
        {"torch", "numpy"},
        {"algos", "policies", "envs.batch", "envs.residual_env", "errors", "ranges", "ranks"},
    ),
    "envs": (
        {"torch", "numpy", "gymnasium", "mujoco", "warp", "mujoco_warp", "h5py"},
        {"envs", "errors", "files", "ranges", "ranks", "shared", "stats"},
    ),
    "envs/data": (
        {"numpy", "h5py", "gymnasium"},
        {"envs.data", "envs.parts", "envs.paths", "envs.memory", "envs.dicts", "envs.packages"}
        | {"envs.pixels", "envs.seeded"}
        | {"errors", "files"},
    ),
    "configs": (set(), set()),
}
STANDARD = set(sys.stdlib_module_names)


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(file: Path) -> list[tuple[int, str, int]]:
    """Line, module and level (0 absolute) of every import."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module, node.level))
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, alias.name, node.level) for alias in node.names]
    return found


def ours(file: Path, module: str, level: int) -> str:
    """A relative import as a path from the package's root: `envs.batch`."""
    parts = file.relative_to(ROOT).parts[:-1]
    return ".".join([*parts[: len(parts) - level + 1], module])


@pytest.mark.parametrize("folder", LIBRARY)
def test_a_library_folder_imports_only_what_its_layer_may(folder: str) -> None:
    others, own = LIBRARY[folder]
    wrong = []
    for file in sources(folder):
        for line, module, level in imports(file):
            if level == 0:
                good = module.partition(".")[0] in others | STANDARD
            else:
                path = ours(file, module, level)
                good = any(path == name or path.startswith(name + ".") for name in own)
            if not good:
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong


def test_an_algorithm_never_imports_another() -> None:
    """An algorithm is what a file of configs/algo names; what several share is not one."""
    text = "".join(file.read_text() for file in (ROOT / "configs" / "algo").glob("*.yaml"))
    algorithms = set(re.findall(r"^  _target_: rheo\.algos\.(\w+)\.", text, re.MULTILINE))
    assert len(algorithms) > 10
    wrong = []
    for file in sources("algos"):
        for line, module, level in imports(file):
            path = ours(file, module, level) if level else module
            sibling = path.removeprefix("algos.") if path.startswith("algos.") else ""
            if sibling in algorithms:
                wrong.append(f"{file.name}:{line} imports {module}")
    assert not wrong


def test_programs_and_tests_import_the_library_as_rheo() -> None:
    flat = re.compile(rf"({'|'.join(FOLDERS)})(\.|$)")
    files = [*sources("scripts"), *sources("tests")]
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in files
        for line, module, level in imports(file)
        if level == 0 and flat.match(module)
    ]
    assert not wrong


def test_package_inits_import_nothing() -> None:
    folders = [ROOT / folder for folder in FOLDERS]
    files = [one for folder in folders for one in folder.rglob("__init__.py")]
    assert [str(file) for file in files if imports(file)] == []


def test_the_package_list_names_every_folder_that_holds_modules() -> None:
    listed = re.search(r"^packages = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    mapped = re.search(r"^package-dir = \{(.*)\}$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert listed and mapped
    held = {
        ".".join(["rheo", *file.relative_to(ROOT).parts[:-1]])
        for folder in FOLDERS
        for file in sources(folder)
    }
    assert set(re.findall(r'"([^"]+)"', listed[1])) == held | {"rheo"}
    pairs = dict(re.findall(r'"([^"]+)" = "([^"]+)"', mapped[1]))
    expected = {name: name.removeprefix("rheo.").replace(".", "/") for name in held}
    assert pairs == expected | {"rheo": "."}


def test_configurations_are_data_of_the_package() -> None:
    assert (ROOT / "configs" / "__init__.py").exists()
    assert '"rheo.configs" = ["**/*.yaml"]' in (ROOT / "pyproject.toml").read_text()


def test_every_dependency_of_the_package_is_pinned_in_the_tested_set() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    names = re.findall(r'^  "([\w-]+)(?:\[\w+\])?>=', text, re.M)
    dev = re.search(r"^dev = \[(.*)\]$", text, re.M)
    assert dev and len(names) == 11
    names += re.findall(r'"([\w-]+)>=', dev[1])
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    missing = set(names) - {name.lower() for name in pinned}
    assert not missing


def test_the_link_for_type_checkers_points_at_the_root() -> None:
    link = ROOT / ".typing" / "rheo"
    assert link.is_symlink() and link.resolve() == ROOT


def test_the_ci_script_is_executable_and_valid() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_the_longest_files_of_tests_are_there() -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
