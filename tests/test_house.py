"""The rules of the house: which room imports which, what is private, how long a file is, and which words it uses.

Each rule is a function from the source of a file to what breaks it, and each has a test that it can fail.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import weightmorph
from weightmorph import parameters, terms

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "weightmorph"

ROOMS = (
    "errors io modes affine parameters slots objectives inputs layers terms transforms storage base execution "
    "estimator model deploy estimation evaluation training reporting comparison hub serving cli"
).split()  # from low to high: a room imports only rooms to its left

NARROW = {"inputs": {"errors", "affine", "parameters"}}  # a room that may import these alone
APART = {("execution", "parameters")}  # a room, and a lower one that it must not import

KINDS = set("batchnorm conv instancenorm linear normalization pooling rnn sparse transformer".split())
LAYERS = {
    name
    for name, kind in vars(nn).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.rpartition(".")[2] in KINDS
}  # what a base network is built of

OPTIONAL = (
    "huggingface_hub jinja2 jsonargparse lightning matplotlib onnx onnxruntime pandas prometheus_client pydantic "
    "pytorch_lightning rich safetensors starlette torchmetrics transformers uvicorn yaml"
).split()


ELSEWHERE = (
    "_parameters _buffers _modules _version _conv_forward _reversed_padding_repeated_twice _BatchNorm _InstanceNorm "
    "_NormBase _ConvNd _ConvTransposeNd _pytree _unsafe_view _MultiProcessingLauncher _fields _replace _asdict _exit"
).split()  # names of torch, Lightning and the standard library that we may use although they look private


def refuse(found: str) -> None:
    """Fail with what was found, a line each."""
    if found:
        pytest.fail(f"{len(found.splitlines())} in all:\n{found}", pytrace=False)


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py")


def findings(rule: Callable[[str], Iterable[str]], *exempt: str) -> str:
    """What breaks a rule in all files but those of the exempt rooms, a line each."""
    return "\n".join(
        f"{file.relative_to(ROOT)}: {finding}"
        for file in files()
        if room_of(file) not in exempt
        for finding in rule(file.read_text("utf-8"))
    )


def imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that is imported, inside functions as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = [*above, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*module, alias.name])) for alias in node.names)


def breaches(room: str, source: str, package: tuple[str, ...] = ("weightmorph",)) -> list[str]:
    """What a file of `room` imports against the order of the rooms; `package` is the package that it lies in."""
    below = NARROW.get(room, set(ROOMS[: ROOMS.index(room)])) - {lower for upper, lower in APART if upper == room}
    found = []
    for line, name in imported(ast.parse(source), package):
        top, *rest = name.split(".")
        if top == "weightmorph" and (rest[:1] or [""])[0] not in {room, *below}:
            found.append(f"line {line}: {room} imports {name}")
    return found


def layers_named(source: str) -> list[str]:
    """The layers of `torch.nn` that a file names; `nn.Linear(...)`, a part of a transform's own network, is allowed."""
    tree = ast.parse(source)
    built = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [name for _, name in imported(tree, ("weightmorph",)) if name.startswith("torch.nn.")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (node.attr == "Linear" and id(node) in built):
            names.append(ast.unparse(node))
    return [
        name
        for name in names
        if re.fullmatch(r"(torch\.)?nn(\.modules\.\w+)?\.\w+", name) and name.rpartition(".")[2] in LAYERS
    ]


def defined_privately(source: str) -> set[str]:
    """The private names that a file defines: functions, classes, variables, fields and attributes."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def is_own(node: ast.expr) -> bool:
    """Is it `self`, `cls` or `super()`?"""
    name = node.func if isinstance(node, ast.Call) else node
    return isinstance(name, ast.Name) and name.id in ("self", "cls", "super")


def private_uses(source: str, allowed: set[str]) -> list[str]:
    """Private names that a file imports, or reads of anything but `self`, and that are not among the allowed ones."""
    uses = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            uses += [(node.lineno, alias.name, f"imports {alias.name}") for alias in node.names]
        elif isinstance(node, ast.Attribute) and not is_own(node.value):
            uses.append((node.lineno, node.attr, f"uses {ast.unparse(node)}"))
    return [f"line {line} {use}" for line, name, use in uses if is_private(name) and name not in allowed]


def class_checks(source: str, classes: set[str]) -> list[str]:
    """Where a file asks whether something is of one of the classes: `isinstance`, `type(x) is`, `match`."""
    asked: list[tuple[int, ast.AST]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked += [(node.lineno, argument) for argument in node.args[1:]]
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("type("):
            asked += [(node.lineno, comparator) for comparator in node.comparators]
        elif isinstance(node, ast.MatchClass):
            asked.append((node.cls.lineno, node.cls))
    return [
        f"line {line} asks for {name}"
        for line, expression in sorted(asked, key=lambda pair: pair[0])
        for name in sorted({ast.unparse(n).rpartition(".")[2] for n in ast.walk(expression) if isinstance(n, ast.expr)})
        if name in classes
    ]


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first, last = function.lineno, function.end_lineno or function.lineno
    documented = ast.get_docstring(function) is not None
    text = function.body[0]
    return last - first + 1 - ((text.end_lineno or text.lineno) - text.lineno + 1 if documented else 0)


def too_long(source: str) -> list[str]:
    """A file of more than 400 lines, and functions of more than 60."""
    lines = len(source.splitlines())
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f"{f.name} has {length_of(f)} lines, 60 are allowed" for f in functions if length_of(f) > 60]
    return ([f"{lines} lines, 400 are allowed"] if lines > 400 else []) + long


DIALECT = re.compile(  # words that have no meaning in the field, or several here
    r"(?<![A-Za-z0-9])(Desk|StandIn|Watch|Carried|_Bill|TOLD|unviewed|carriers?|dearer|told|alike)(?![A-Za-z0-9])"
)


def dialect(source: str) -> list[str]:
    """Words of the old dialect, in names and in prose."""
    return [
        f"line {number} says {word!r}"
        for number, line in enumerate(source.splitlines(), 1)
        for word in DIALECT.findall(line)
        if not line.endswith("# a name in saved files")
    ]


def docstrings(source: str) -> str:
    """All docstrings of a file, those of fields included."""
    texts = [n.value.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Expr) and is_text(n.value)]
    return "\n".join(texts)


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


PATH = re.compile(r"(?<![\w./-])(?:weightmorph|wm)(?:\.[A-Za-z_]\w*)+")


def named_paths(text: str) -> set[str]:
    """The dotted paths into the library that a text names, with `wm.` written out."""
    return {re.sub(r"^wm\b", "weightmorph", path) for path in PATH.findall(text)}


def bare_references(text: str) -> set[str]:
    """Cross references whose text is no dotted path, so that the documentation cannot find what they mean."""
    return {name for name in re.findall(r"\[`([^`\n]+)`\]\[\]", text) if not name.startswith("weightmorph.")}


@functools.cache
def resolves(path: str) -> bool:
    """Does a dotted path lead to a module, or to an attribute or an annotated field of something?"""
    parts = path.split(".")
    if parts[0] != "weightmorph":
        return False
    value: Any = weightmorph
    for n, name in enumerate(parts[1:], 2):
        if hasattr(value, name):
            value = getattr(value, name)
        elif isinstance(value, type):
            fields = {f.name for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
            annotated = {key for kind in value.__mro__ for key in vars(kind).get("__annotations__", {})}
            return n == len(parts) and name in fields | annotated
        else:
            try:
                value = importlib.import_module(".".join(parts[:n]))
            except ImportError:
                return False
    return True


def test_every_room_is_known() -> None:
    """A new room needs a place in the order first, and the order names rooms that exist."""
    rooms = {room_of(file) for file in files()}
    unknown = sorted(rooms - set(ROOMS))
    assert not unknown, f"{unknown} have no place in ROOMS: which rooms may they import, and which import them?"
    assert set(ROOMS) <= rooms, f"ROOMS names what is not there: {sorted(set(ROOMS) - rooms)}"


def test_a_room_imports_only_rooms_below_it() -> None:
    """The order of ROOMS; what a package imports from within itself is its own affair."""
    found = []
    for file in files():
        package = ("weightmorph", *file.relative_to(SOURCE).parts[:-1])
        if room_of(file) in ROOMS:
            found += [
                f"{file.relative_to(ROOT)}, {b}" for b in breaches(room_of(file), file.read_text("utf-8"), package)
            ]
    refuse("\n".join(found))


def test_transforms_never_meet_a_layer() -> None:
    """A transform sees a weight and a code; the slot says what kind of layer the weight belongs to."""
    found = findings(layers_named, *(room for room in ROOMS if room != "transforms"))
    refuse(found)


def test_no_room_uses_a_private_name_of_another() -> None:
    """A private name is used in the room that defines it. Only what the syntax shows is seen."""
    local: dict[str, set[str]] = {}
    for file in files():
        local.setdefault(room_of(file), set()).update(defined_privately(file.read_text("utf-8")))
    found = []
    for file in files():
        uses = private_uses(file.read_text("utf-8"), local[room_of(file)].union(ELSEWHERE))
        found += [f"{file.relative_to(ROOT)}: {use}" for use in uses]
    refuse("\n".join(found))


def subclasses_in(room: Any, kind: type) -> set[str]:
    """The names of the subclasses of `kind` that a room exports."""
    return {n for n, k in vars(room).items() if isinstance(k, type) and issubclass(k, kind) and k is not kind}


def test_nobody_asks_which_term_it_is() -> None:
    """A term carries its own algebra, so that a new one is one file."""
    classes = subclasses_in(terms, terms.Term)
    assert {"RowScale", "LowRankUpdate", "TapMix", "BasisMix", "Dense"} <= classes
    found = findings(lambda source: class_checks(source, classes), "terms")
    refuse(found)


def test_nobody_asks_which_parameter_it_is() -> None:
    """A parameter speaks for itself, so that a new kind is one file."""
    classes = subclasses_in(parameters, parameters.Parameter)
    assert {"Angle", "Interval", "LogInterval", "Categorical"} <= classes
    found = findings(lambda source: class_checks(source, classes), "parameters")
    refuse(found)


def test_files_and_functions_are_short() -> None:
    """A file has at most 400 lines, and a function at most 60 beside its docstring."""
    found = findings(too_long)
    refuse(found)


def test_words_of_the_old_dialect_are_gone() -> None:
    """The field's words are used; DIALECT lists those that are not."""
    found = findings(dialect)
    refuse(found)


def test_every_path_that_is_named_exists() -> None:
    """Docs, README, docstrings and examples name modules, classes and functions that are there."""
    texts = {file: docstrings(file.read_text("utf-8")) for file in [SOURCE / "__init__.py", *files()]}
    missing = [(file, name) for file, text in texts.items() for name in sorted(bare_references(text))]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    texts |= {file: file.read_text("utf-8") for file in pages if file.name != "CHANGELOG.md"}
    assert {ROOT / "README.md", SOURCE / "slots.py"} <= set(texts)
    missing += [
        (file, path) for file, text in texts.items() for path in sorted(named_paths(text)) if not resolves(path)
    ]
    refuse("\n".join(f"{file.relative_to(ROOT)} names {path}" for file, path in missing))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("terms", "from .base.view import View"),
        ("terms", "from . import base"),
        ("terms", "import weightmorph.base.view"),
        ("terms", "import weightmorph"),
        ("terms", "from weightmorph import condition"),
        ("terms", "def f():\n    from weightmorph.base.view import View"),
        ("inputs", "from .objectives import supervised"),
        ("execution", "from .parameters import Angle"),
    ],
)
def test_the_check_of_imports_sees(room: str, source: str) -> None:
    """The checks above can fail: each of these lines is against the order."""
    assert breaches(room, source)


def test_the_check_of_imports_allows_what_is_below() -> None:
    lines = "import torch\nfrom ..slots import Slot\nfrom .base import Term\nfrom .. import terms, errors"
    assert not breaches("transforms", lines, ("weightmorph", "transforms"))


def test_the_check_of_layers_sees() -> None:
    assert layers_named("from torch import nn\nisinstance(m, nn.Conv2d)") == ["nn.Conv2d"]
    assert layers_named("isinstance(m, nn.Linear)") == ["nn.Linear"]
    assert layers_named("from torch.nn import Linear, Module") == ["torch.nn.Linear"]
    assert layers_named("from torch.nn.modules.conv import Conv1d") == ["torch.nn.modules.conv.Conv1d"]
    assert not layers_named("class A(nn.Module): inner = nn.Sequential(nn.Linear(3, 2), nn.Tanh())")


def test_the_check_of_private_names_sees() -> None:
    for source in ("model._encode(c)", "from ..base.view import _Recipe", "self.model._encode(c)", "x()._y = 1"):
        assert private_uses(source, {"_other"}), source
    for source in ("self._x", "super()._x()", "cls._x", "module._modules", "a.__dict__", "_x = 1", "x[_i]"):
        assert not private_uses(source, set(ELSEWHERE)), source
    assert defined_privately("class _A:\n  _b: int\n  def _c(self): self._d = other._e = 1") == {"_A", "_b", "_c", "_d"}


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(t, RowScale)",
        "isinstance(t, (A, terms.RowScale))",
        "isinstance(t, A | RowScale)",
        "type(t) is RowScale",
        "issubclass(type(t), RowScale)",
        "match t:\n    case RowScale():\n        pass",
    ],
)
def test_the_check_of_classes_sees(source: str) -> None:
    assert class_checks(source, {"RowScale"}) == [f"line {1 + source.count('case')} asks for RowScale"]
    assert not class_checks(source, {"LowRankUpdate"})
    assert not class_checks("RowScale(slot, weight, gain)\nisinstance(RowScale, type)", {"RowScale"})


def test_the_check_of_lengths_sees() -> None:
    body = '    """Docstring\n    of two lines."""\n' + 59 * "    pass\n"
    assert not too_long("def f():\n" + body)
    assert too_long("def f():\n" + body + "    pass\n") == ["f has 61 lines, 60 are allowed"]
    assert too_long("class A:\n" + 400 * "    pass\n") == ["401 lines, 400 are allowed"]


def test_the_check_of_words_sees() -> None:
    assert [s.split()[-1] for s in dialect("class StandIn:\n    def _told(self): 'alike'")] == [
        "'StandIn'", "'told'", "'alike'",
    ]  # fmt: skip
    assert not dialect("Standing desks, watchers and carrierless stories; untold.")


def test_the_check_of_paths_sees() -> None:
    text = "[`a`][weightmorph.Warp], `wm.nothing`, weightmorph.base.view.View, weightmorph.Warp.no, [`Warp.build`][]."
    paths = named_paths(text)
    assert bare_references(text) == {"Warp.build"}
    assert {path for path in paths if not resolves(path)} == {"weightmorph.nothing", "weightmorph.Warp.no"}
    assert len(paths) == 4
    assert resolves("weightmorph.slots.Slot.normed") and resolves("weightmorph.WeightTransform.slot")
    assert not resolves("weightmorph.slots.Slot.normed.more")
    assert docstrings('x = "no"\ndef f():\n    """Yes."""') == "Yes."


def test_importing_the_library_is_light() -> None:
    """`import weightmorph` loads no optional package."""
    code = f"import weightmorph, sys; print(*sorted(set({OPTIONAL!r}) & set(sys.modules)))"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.strip() == ""


def test_public_names_are_sorted_and_exist() -> None:
    names = list(getattr(weightmorph, "__all__", []))
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(weightmorph, name)] == []


def test_no_file_names_a_private_path() -> None:
    """What we ship runs on any machine, so it names no path of ours."""
    private = re.compile(r"(?<![\w.])/(work|root|farm|tmp)/|[.]library\b")
    kinds = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".html", ".ipynb", ".j2"}
    ours = [file for file in ROOT.iterdir() if file.is_file() and (file.suffix in kinds or file.name == "Makefile")]
    for folder in ("src", "tests", "examples", "benchmarks", "docs", ".ci"):
        ours += [f for f in (ROOT / folder).rglob("*") if f.is_file() and (f.suffix in kinds or folder == ".ci")]
    assert ROOT / "Makefile" in ours
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted(ours)
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if private.search(line)
    ]
    refuse(found)
