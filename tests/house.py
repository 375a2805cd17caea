"""Counts what the library is made of: `python tests/house.py`.

Code lines are lines that hold a token other than a comment or a docstring. The lines behind an
algorithm are those of its file and of every file that it imports, directly or not. A cycle counts
imports inside functions too, not those for type checkers alone. Nesting counts compound statements
inside a function.
"""

import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
ROOMS = ("policies", "algos", "envs", "scripts")
SILENT = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}
DEEPER = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """The numbers of the lines with code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        match node:
            case (
                ast.Module(body=[ast.Expr(ast.Constant(str())) as first, *_])
                | ast.ClassDef(body=[ast.Expr(ast.Constant(str())) as first, *_])
                | ast.FunctionDef(body=[ast.Expr(ast.Constant(str())) as first, *_])
            ):
                lines.difference_update(range(first.lineno, (first.end_lineno or 0) + 1))
    return lines


def nesting(node: ast.AST) -> int:
    """How many compound statements lie inside each other; `elif` is not one more."""
    deepest = 0
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (Function, ast.ClassDef)):
                continue
            chained = field == "orelse" and isinstance(node, ast.If) and len(value) == 1
            own = isinstance(child, DEEPER) and not (chained and isinstance(child, ast.If))
            deepest = max(deepest, own + nesting(child))
    return deepest


def runtime(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports, without those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from runtime(node)


def imported(path: Path, tree: ast.AST, names: dict[str, Path]) -> set[Path]:
    """The library's files that a file imports."""
    package = ["rheo", *path.relative_to(HOME).parts[:-1]]
    wanted: set[str] = set()
    for node in runtime(tree):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
            continue
        start = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*start, *([node.module] if node.module else [])])
        wanted |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {names[name] for name in wanted if name in names} - {path}


def reach(start: Path, arrows: dict[Path, set[Path]]) -> set[Path]:
    """Every file behind one, itself included."""
    seen, todo = {start}, [start]
    while todo:
        new = arrows[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def measure() -> list[tuple[str, str]]:
    """What is counted, and how much of it there is."""
    files = sorted(file for room in ROOMS for file in (HOME / room).rglob("*.py"))
    files += sorted(HOME.glob("*.py"))
    texts = {file: file.read_text() for file in files}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    counts = {file: len(code_lines(texts[file], trees[file])) for file in files}
    names = {".".join(["rheo", *f.relative_to(HOME).with_suffix("").parts]): f for f in files}
    names |= {name.removesuffix(".__init__"): f for name, f in names.items()}
    arrows = {file: imported(file, trees[file], names) for file in files}
    heads = {
        names[line.split()[-1].rpartition(".")[0]]
        for file in (HOME / "configs" / "algo").glob("*.yaml")
        for line in file.read_text().splitlines()
        if line.startswith("  _target_: rheo.algos.")
    }
    behind = {head: sum(counts[file] for file in reach(head, arrows)) for head in heads}
    rings = {file for file in files if any(file in reach(after, arrows) for after in arrows[file])}
    functions = [
        (node, f"{file.relative_to(HOME)}:{node.name}")
        for file in files
        for node in ast.walk(trees[file])
        if isinstance(node, Function)
    ]
    length, longest = max(((n.end_lineno or 0) - n.lineno + 1, place) for n, place in functions)
    deep, deepest = max((nesting(node), place) for node, place in functions)
    lines, long_file = max((texts[file].count("\n"), str(file.relative_to(HOME))) for file in files)
    rooms = {room: [f for f in files if f.is_relative_to(HOME / room)] for room in ROOMS}
    return [
        *(
            (f"{room}: files / code lines", f"{len(own)} / {sum(counts[f] for f in own):,}")
            for room, own in rooms.items()
        ),
        ("all: files / code lines", f"{len(files)} / {sum(counts.values()):,}"),
        ("longest file", f"{lines} ({long_file})"),
        ("longest function", f"{length} ({longest})"),
        ("deepest nesting", f"{deep} ({deepest})"),
        (
            "files on a ring of imports",
            ", ".join(str(f.relative_to(HOME)) for f in sorted(rings)) or "0",
        ),
        ("lines behind one algorithm, median", f"{statistics.median(behind.values()):,.0f}"),
    ]


if __name__ == "__main__":
    for name, value in measure():
        print(f"{name:36} {value}")
