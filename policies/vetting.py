"""What the file of a program may hold, looked at before torch reads it.

`torch.export.load` runs what a `.pt2` asks for in five ways: pickles among the weights, a pickle as
the sample inputs, expressions of sizes (sympy evaluates them), guards and names (both become Python
source). So an archive is taken apart, every text in it is held against a small grammar, and a new
archive is made of what is needed: that one is loaded. TorchScript is looked through for operators
that write files. This is a filter and no proof: a program stays code, which its user has to trust.
"""

import ast
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

LARGEST = 64 << 20  # bytes of models/model.json
LONGEST = 2000  # characters of an expression
POWER = 16  # the largest exponent
NAME = re.compile(r"[A-Za-z_]\w*")
WORD = re.compile(r"[\w.,:+\-<> ()=]{0,1000}")  # no quote, no line break, no backslash, no bracket
SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")  # s0, u3, zuf1
TARGET = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled)"
    r"|torch\._functorch\.predispatch\.(lazy_load_decompositions|_vmap_(in|de)crement_nesting"
    r"|_(add|remove)_batch_dim)"
    r"|torch\.sym_\w+|torch\._sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor"
    r"|not_|invert|lshift|rshift|getitem)"
)
FILES = ("from_file", "save")  # operators of aten that write or map a file
FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        """
    Abs Add And BooleanFalse BooleanTrue CeilDiv CeilToInt CleanDiv Eq Equality Float FloatPow
    FloatTrueDiv FloorDiv FloorToInt Ge GreaterThan Gt Identity Infinity IntInfinity IntTrueDiv
    Integer LShift Le LessThan Lt Max Min Mod ModularIndexing Mul Ne NegativeInfinity
    NegativeIntInfinity Not Or Pow PowByNatural PythonMod RShift Rational RoundDecimal RoundToInt
    StrictGreaterThan StrictLessThan Symbol ToFloat TruncToFloat TruncToInt Unequality Where
    ceiling floor
""",
    )
)
CONSTANTS = frozenset({"oo", "int_oo", "true", "false", "nan"})
PLAIN = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Load, ast.keyword)
SIGNS = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
ABOUT = ("archive_format", "archive_version", "byteorder")
CONFIGS = {place: f"data/{place}/model_{place}_config.json" for place in ("weights", "constants")}


def vetted(data: bytes) -> io.BytesIO:
    """An archive of torch.export with what is needed of it, and nothing that is run in reading it.

    Raises ValueError that names what it holds beside, or what is no archive.
    """
    archive = torch._C.PyTorchFileReader(io.BytesIO(data))
    names = archive.get_all_records()
    if sum(archive.get_record_size(name) for name in names) > 2 * len(data) + (1 << 20):
        raise ValueError("its archive unfolds to more than it is; torch writes it unpacked")
    native = [name for name in names if name.startswith("data/aotinductor/")]
    if native:
        raise ValueError(f"holds a native library ({native[0]}), which no check can look into")
    for name in (MODEL, INPUTS, *CONFIGS.values()):
        if name not in names:
            raise ValueError(f"lacks {name}: save it with torch.export.save of torch 2.9 or later")
    others = [n for n in names if n.startswith(("models/", "data/sample_inputs/"))]
    if set(others) != {MODEL, INPUTS}:
        raise ValueError("holds several programs, and one is meant")
    refuse_pickle(archive.get_record(INPUTS))
    kept = {name: archive.get_record(name) for name in ABOUT if name in names}
    kept[MODEL] = plain(archive.get_record(MODEL))
    for place, name in CONFIGS.items():
        kept[name] = text = archive.get_record(name)
        for record in payloads(place, read_json(name, text), archive, names):
            kept[record] = archive.get_record(record)
    return packed({**kept, INPUTS: b""})


def packed(records: Mapping[str, bytes]) -> io.BytesIO:
    """A new archive of these records."""
    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name, content in records.items():
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    buffer.seek(0)
    return buffer


def refuse_pickle(data: bytes) -> None:
    """Raises ValueError for sample inputs that torch would unpickle with code."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{INPUTS} is a pickle that runs code, or a broken one (torch.load refuses it with "
            "weights_only=True)"
        ) from error


def payloads(place: str, config: Any, archive: Any, names: list[str]) -> Iterator[str]:
    """The records of the weights or constants. Raises ValueError for what is no tensor."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise ValueError(f"{CONFIGS[place]} lists no {place}")
    for fqn, entry in entries.items():
        entry = entry if isinstance(entry, dict) else {}
        file, known = str(entry.get("path_name")), entry.get("tensor_meta")
        if entry.get("use_pickle") is not False:
            raise ValueError(
                f"{place}: {fqn!r} is stored as a pickle (use_pickle), which runs code"
            )
        record, kinds = f"data/{place}/{file}", ("weight_", "tensor_")
        if not file.startswith(kinds) or record not in names or not isinstance(known, dict):
            raise ValueError(f"{place}: {fqn!r} is no tensor of this archive ({file})")
        sizes = [size.get("as_int") for size in known.get("sizes", ()) if isinstance(size, dict)]
        if not archive.get_record_size(record) and 0 not in sizes:
            raise ValueError(f"{place}: {fqn!r} has no numbers, and says that it is {sizes}")
        yield record
    refuse_texts(entries, CONFIGS[place])


def read_json(name: str, text: bytes) -> Any:
    """A record as JSON. Raises ValueError."""
    if len(text) > LARGEST:
        raise ValueError(f"{name} is {len(text) >> 20} MiB long")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON: {error}") from error


def plain(text: bytes) -> bytes:
    """The graph without its guards and its remarks (both of which are only for whoever reads or
    retraces it). Raises ValueError for a text that could become code.
    """
    node = read_json(MODEL, text)
    if not isinstance(node, dict):
        raise ValueError(f"{MODEL} holds no program")
    node["guards_code"] = []
    forget_remarks(node)
    refuse_texts(node, MODEL)
    return json.dumps(node).encode()


def forget_remarks(node: Any) -> None:
    """Empties every `metadata`: stack traces and names of modules."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list)):
            forget_remarks(value)
    if isinstance(node, dict) and isinstance(node.get("metadata"), dict):
        node["metadata"] = {}


def refuse_texts(node: Any, place: str, key: str = "") -> None:
    """Raises ValueError for a text of a tree that its place does not allow."""
    if isinstance(node, dict):
        for name, value in node.items():
            refuse(WORD.fullmatch(name), place, name)
            refuse_texts(value, place, name)
    elif isinstance(node, list):
        for value in node:
            refuse_texts(value, place, key)
    elif isinstance(node, str):
        refuse_text(node, place, key)


def refuse_text(text: str, place: str, key: str) -> None:
    """Raises ValueError for a text that the grammar of its key does not have."""
    if key == "expr_str":
        refuse_expression(text, place)
    elif key in ("in_spec", "out_spec", "context") and text[:1] in ("[", "{", '"'):
        refuse_texts(read_json(key, text.encode()), place, "context")
    elif key == "target":
        refuse(TARGET.fullmatch(text), place, text)
        refuse(text.split(".")[-1] not in FILES and f".{FILES[0]}." not in text, place, text)
    elif key in ("name", "as_name", "forward_arg_names", "context"):
        refuse(not text or NAME.fullmatch(text), place, text)
    else:
        refuse(WORD.fullmatch(text), place, text)


def refuse(good: object, place: str, text: str) -> None:
    """Raises ValueError naming the text, unless it is good."""
    if not good:
        raise ValueError(f"{place} holds {text[:80]!r}, which is no name or operator of a program")


def refuse_expression(text: str, place: str) -> None:
    """Raises ValueError for an expression of sizes that is more than arithmetic."""
    try:
        good = len(text) <= LONGEST and all(map(arithmetic, ast.walk(ast.parse(text, mode="eval"))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        good = False
    if not good:
        raise ValueError(
            f"{place} holds the expression {text[:80]!r}, which is no arithmetic of sizes"
        )


def arithmetic(node: ast.AST) -> bool:
    """Whether a part of an expression is a number, a symbol, a sign or a function of sizes."""
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return abs(value) < 1 << 64 or value == float("inf")
        case ast.Constant(value=str() as text):  # of Symbol('s0') and Float('1.5')
            return bool(SYMBOL.fullmatch(text) or re.fullmatch(r"-?[\d.e+\-]{1,40}", text))
        case ast.Name(id=name):
            return bool(SYMBOL.fullmatch(name)) or name in FUNCTIONS | CONSTANTS
        case ast.Call(func=ast.Name(id=name), args=given):
            raised = name not in ("Pow", "PowByNatural", "FloatPow") or small(given[-1:])
            return name in FUNCTIONS and raised
        case ast.BinOp(op=ast.Pow() | ast.LShift(), right=right):
            return small([right])
    return isinstance(node, (*PLAIN, *SIGNS))


def small(given: list[ast.expr]) -> bool:
    """Whether an exponent is a small number, as it stands or as Integer(2)."""
    match given:
        case [ast.Call(func=ast.Name(id="Integer"), args=inner)]:
            return small(inner)
        case [ast.UnaryOp(op=ast.USub(), operand=inner)]:
            return small([inner])
        case [ast.Constant(value=int() | float() as value)]:
            return abs(value) <= POWER
    return False


# ---- TorchScript ---------------------------------------------------------------------------------

WRITES = re.compile(rb"\b(from_file|save)\b\s*\\?\s*\(")
CLASSES = re.compile(rb"torch\.classes\.(?!quantized\.)\w+")


def refuse_script(data: bytes) -> None:
    """Raises ValueError for the source of TorchScript that names a file or a native class: some of
    it runs when it is read (`__setstate__`).
    """
    archive = torch._C.PyTorchFileReader(io.BytesIO(data))
    for name in archive.get_all_records():
        if name.startswith("code/") and name.endswith(".py"):
            found = WRITES.search(text := archive.get_record(name)) or CLASSES.search(text)
            if found:
                raise ValueError(f"{name} calls {found[0].decode()}...: a program reads no files")


def refuse_graph(module: Any) -> None:
    """Raises ValueError for a graph of TorchScript that calls what writes files."""
    for part in module.modules():
        for name in part._c._method_names():
            wrong = {f"aten::{each}" for each in FILES} & set(
                kinds(part._c._get_method(name).graph)
            )
            if wrong:
                raise ValueError(
                    f"its method {name} calls {wrong.pop()}: a program writes no files"
                )


def kinds(block: Any) -> Iterator[str]:
    """The operators of a graph and of the blocks in it."""
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from kinds(inner)
