"""The order of the house: who imports whom, what importing the library loads, and what its files must not name."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import weightmorph

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "weightmorph"

ROOMS = (
    "errors io modes affine parameters slots objectives inputs layers terms transforms storage base execution "
    "estimator model deploy estimation evaluation training reporting comparison hub serving cli"
).split()  # from low to high: a room imports only rooms to its left

NARROW = {"inputs": {"errors", "affine", "parameters"}}  # a room that may import these alone
APART = {("execution", "parameters")}  # a room, and a lower one that it must not meet all the same

KINDS = set("batchnorm conv instancenorm linear normalization pooling rnn sparse transformer".split())
LAYERS = {
    name
    for name, kind in vars(nn).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.rpartition(".")[2] in KINDS
}  # what a base network is built of

OPTIONAL = (
    "fastapi gradio huggingface_hub jinja2 jsonargparse lightning litserve matplotlib onnx onnxruntime pandas "
    "prometheus_client pytorch_lightning rich safetensors starlette torchmetrics transformers uvicorn yaml"
).split()


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def files() -> list[Path]:
    return sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py")


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


def test_every_room_is_known() -> None:
    """A new room needs a place in the order first."""
    unknown = sorted({room_of(file) for file in files()} - set(ROOMS))
    assert not unknown, f"{unknown} have no place in ROOMS: which rooms may they import, and which import them?"


def test_a_room_imports_only_rooms_below_it() -> None:
    """The order of ROOMS; what a package imports from within itself is its own affair."""
    found = []
    for file in files():
        package = ("weightmorph", *file.relative_to(SOURCE).parts[:-1])
        if room_of(file) in ROOMS:
            found += [
                f"{file.relative_to(ROOT)}, {b}" for b in breaches(room_of(file), file.read_text("utf-8"), package)
            ]
    assert not found, "\n".join(found)


def test_transforms_never_meet_a_layer() -> None:
    """A transform sees a weight and a code; what kind of layer the weight belongs to, it is told by the slot."""
    found = []
    for file in files():
        if room_of(file) == "transforms":
            found += [f"{file.relative_to(ROOT)} names {layer}" for layer in layers_named(file.read_text("utf-8"))]
    assert not found, "\n".join(found)


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
    assert not found, found
