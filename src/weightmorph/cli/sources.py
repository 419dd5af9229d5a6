"""What a configuration names: functions by import path, the network, and its weights."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, MissingDependencyError, near, require

__all__ = ["absolute", "call", "named", "network"]

FILES = {"model", "out", "settings", "to", "weights"}
"""Keys that hold a file or a folder."""

KINDS = ("folder", "idx", "npz")
"""Sources that are written `kind:PATH`."""


def absolute(key: str, value: Any, folder: Path) -> Any:
    """A configuration's value with the paths in it made absolute: they are relative to the configuration's folder.

    What a key of `FILES` holds is a path, and so is what stands before the name in `file.py:name` or after the kind in
    `folder:PATH`.

    Example:
        >>> absolute("base", "torch.nn:ReLU", Path("runs")), absolute("seed", 3, Path("runs"))
        ('torch.nn:ReLU', 3)
    """
    if key.endswith("_options") or key == "trainer":
        return value  # arguments of a function, which reads them as it likes
    if isinstance(value, dict):
        return {name: absolute("", item, folder) for name, item in value.items()}
    if isinstance(value, list):
        return [absolute("", item, folder) for item in value]
    if not isinstance(value, str):
        return value
    if key in FILES:
        return _absolute(value, folder)
    kind, _, path = value.partition(":")
    file, _, name = value.rpartition(":")
    if kind in KINDS and path:
        return f"{kind}:{_absolute(path, folder)}"
    return f"{_absolute(file, folder)}:{name}" if file.endswith(".py") else value


def _absolute(path: str, folder: Path) -> str:
    return os.path.abspath(folder / Path(path).expanduser())


def named(path: str, where: str) -> Any:
    """What an import path names. Importing runs the user's own code: they asked for it by name.

    Args:
        path: `package.module:name` or `file.py:name`.
        where: the key that holds it, for messages.

    Raises:
        ConfigError: if there is no such module or name, or if importing it fails.

    Example:
        >>> named("math:sqrt", "base")(4.0)
        2.0
    """
    module_name, _, name = path.rpartition(":")
    if not module_name or not name.isidentifier():
        raise ConfigError(f"{where}: expected 'package.module:function' or 'file.py:function', got {path!r}")
    try:
        module = _from_file(Path(module_name)) if module_name.endswith(".py") else _from_path(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if isinstance(error, FileNotFoundError) and error.filename == module_name:
            raise ConfigError(f"{where}: there is no file {os.path.abspath(module_name)}") from error
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{where}: there is no module {missing!r}: install the package, or name a file, 'file.py:function'"
            ) from error
        raise ConfigError(f"{where}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigError(f"{where}: {module_name} has no {name!r}{near(name, vars(module))}") from None


def _from_path(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing that lies there hides an installed package
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    """The file as a module: under its own name if that is free, so that its neighbours import the same module."""
    file = path.resolve()
    if not file.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # so that a script finds its neighbours, as when it is run
    known = sys.modules.get(file.stem)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    found = importlib.util.find_spec(file.stem) if file.stem.isidentifier() and known is None else None
    free = file.stem.isidentifier() and known is None and (found is None or found.origin == str(file))
    name = file.stem if free else f"_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def call(path: str, options: Mapping[str, Any], where: str) -> Any:
    """Call what an import path names; a value that is no function is taken as it is.

    Raises:
        ConfigError: if it cannot be called so, or raises.
    """
    function = named(path, where)
    if not callable(function) or isinstance(function, nn.Module):
        if options:
            raise ConfigError(f"{where}_options: {path} is no function, so it takes no options")
        return function
    try:
        return function(**options)
    except MissingDependencyError:
        raise
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ConfigError(f"{where}: {path}({given}) failed: {type(error).__name__}: {error}") from error


def network(options: Any) -> nn.Module:
    """The frozen network: made by its function, filled with its weights, in eval mode.

    Args:
        options: `base`, `base_options`, `weights`, `weights_key` and `seed`.

    Raises:
        ConfigError: if no base is named, or it or its weights cannot be had.
        MissingDependencyError: for `timm:NAME` without timm.
    """
    if options.base is None:
        raise ConfigError("base: which network? expected 'package.module:function', 'file.py:function' or 'timm:NAME'")
    torch.manual_seed(options.seed)  # a network with random weights is the same one each time
    kind, _, name = options.base.partition(":")
    net = _timm(name, options.base_options) if kind == "timm" else call(options.base, options.base_options, "base")
    if not isinstance(net, nn.Module):
        raise ConfigError(f"base: {options.base} gave a {type(net).__name__}, and should give an nn.Module")
    if options.weights is not None:
        try:
            net.load_state_dict(tensors(Path(options.weights), options.weights_key))
        except RuntimeError as error:  # which names what is missing, not expected, or of another shape
            reason = " ".join(str(error).split())
            raise ConfigError(f"weights: {options.weights} does not fit the base: {reason:.400}") from error
    return net.eval()


def _timm(name: str, options: Mapping[str, Any]) -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingDependencyError(f"base 'timm:{name}' needs timm: pip install timm ({error})") from error
    try:
        return timm.create_model(name, **options)  # without pretrained=True it downloads nothing
    except Exception as error:
        raise ConfigError(f"base: timm has no network {name!r} with these options: {error}") from error


def tensors(file: Path, key: str | None = None) -> dict[str, Tensor]:
    """A state_dict from a file, without running code that it may hold.

    Raises:
        ConfigError: if it cannot be read so, or is no state_dict.
    """
    if not file.is_file():
        raise ConfigError(f"weights: there is no file {file}")
    safe = file.suffix == ".safetensors"
    try:
        if safe:
            found = require("safetensors.torch", "cli", "reading safetensors").load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except MissingDependencyError:
        raise
    except Exception as error:  # whatever the readers say to a damaged file
        raise ConfigError(
            f"weights: {file} cannot be read as {'safetensors' if safe else 'tensors alone'}: "
            f"{str(error).partition(chr(10))[0]}; a file that holds code is never run: save a state_dict"
        ) from error
    entries = found if isinstance(found, dict) else {}
    if key is not None:
        if key not in entries:
            raise ConfigError(f"weights_key: {file} has no entry {key!r}{near(key, map(str, entries))}")
        found = entries[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        content = ", ".join(map(str, list(found)[:6])) if isinstance(found, dict) else type(found).__name__
        raise ConfigError(f"weights: {file} is no state_dict (it holds {content}); name its entry with weights_key")
    return found
