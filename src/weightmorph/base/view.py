"""The base's module tree as data, cloned per call.

A [`View`][weightmorph.base.view.View] reads a network once. Each call of a conditioned model then runs on a *clone*:
new module objects of the same classes around the same tensors, a few dictionary copies and nothing more. What a call
changes on its clone, no other call and no other thread can see, and the user's network is never touched.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BaseError

__all__ = ["View"]

REFUSED: Mapping[str, str] = {
    "ScriptModule": "a ScriptModule runs outside Python and reads its own weights; condition the eager module",
    "DataParallel": "DataParallel copies its module per device on every call; condition the module inside it (.module)",
    "DistributedDataParallel": "condition the module inside it (.module), then wrap the conditioned model",
    "OptimizedModule": "condition the module inside it (._orig_mod), then compile the conditioned model",
}


class _Module(int):
    """Stands for module number i of a clone."""


class _Method:
    """Stands for a bound method of module number `owner`."""

    def __init__(self, function: Callable[..., Any], owner: int) -> None:
        self.function, self.owner = function, owner


class View:
    """A network's modules as classes and dictionaries.

    Parameters share storage with the network until they are moved. Buffers are copied, because a base may write into
    them. Every module is in eval mode.

    Args:
        net: the network; read and left as it is.

    Raises:
        BaseError: if it is of a kind that cannot be run from its modules' dictionaries, or not initialised yet.
    """

    def __init__(self, net: nn.Module) -> None:
        self.numbers: dict[int, int] = {}
        modules: list[nn.Module] = []
        self._find(net, modules)
        for name, module in net.named_modules():
            self._check(name, module)
        arguments = inspect.signature(net.forward).parameters.values()
        self.keywords = [a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
        self.open_keywords = any(a.kind == a.VAR_KEYWORD for a in arguments)
        self.total = sum(p.numel() for p in net.parameters())
        self.trains = [p.requires_grad for p in net.parameters()]
        seen: dict[int, Tensor] = {}
        self.classes = [type(m) for m in modules]
        self.dicts = [{k: self._read(v, seen) for k, v in vars(m).items()} | {"training": False} for m in modules]
        self.names = {name: self.numbers[id(m)] for name, m in net.named_modules(remove_duplicate=False)}
        self.numbers = {}
        self._written: frozenset[str] = frozenset()
        self._index()

    @staticmethod
    def _check(name: str, module: nn.Module) -> None:
        for kind in type(module).__mro__:
            if kind.__name__ in REFUSED and kind.__module__.startswith("torch."):
                raise BaseError(f"layer {name or '(the network)'!r} is a {kind.__name__}: {REFUSED[kind.__name__]}")
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None and nn.parameter.is_lazy(value):
                raise BaseError(
                    f"layer {name!r}: {key} is not initialised yet (a lazy module); run the network once first"
                )

    def _find(self, value: Any, modules: list[nn.Module]) -> None:
        """Number every module that can be reached, registered or not."""
        if isinstance(value, nn.Module):
            if id(value) in self.numbers:
                return
            self.numbers[id(value)] = len(modules)
            modules.append(value)
            value = vars(value)
        if isinstance(value, dict):
            value = tuple(value.values())
        if isinstance(value, list | tuple):
            for item in value:
                self._find(item, modules)

    def _read(self, value: Any, seen: dict[int, Tensor]) -> Any:
        """A value of a module's dictionary, with tensors of the view and with modules as numbers."""
        if isinstance(value, Tensor):
            if id(value) not in seen:
                if isinstance(value, nn.Parameter):
                    seen[id(value)] = nn.Parameter(value.detach(), requires_grad=False)
                else:
                    seen[id(value)] = nn.Buffer(value.detach().clone())
            return seen[id(value)]
        if isinstance(value, nn.Module):
            return _Module(self.numbers[id(value)])
        if isinstance(value, types.MethodType) and id(value.__self__) in self.numbers:
            return _Method(value.__func__, self.numbers[id(value.__self__)])
        return _map(value, lambda item: self._read(item, seen))

    def _index(self) -> None:
        """Prepare, for each module's dictionary, how a clone copies it."""
        self.copiers = [_DictCopier(entries) for entries in self.dicts]

    def clone(self, overrides: Mapping[int, Mapping[str, Any]] | None = None) -> nn.Module:
        """A new network around the same tensors.

        Args:
            overrides: module number to attributes that stand in the instance's dictionary, where they are found
                before the registered tensors. `parameters()` of the clone still yields the real ones.
        """
        make = object.__new__
        new: list[nn.Module] = [make(kind) for kind in self.classes]
        for module, entries, copier in zip(new, self.dicts, self.copiers, strict=True):
            object.__setattr__(module, "__dict__", copier.copy(entries, new))
        for number, attributes in (overrides or {}).items():
            vars(new[number]).update(attributes)
        return new[0]

    def plain(self) -> nn.Module:
        """An independent copy of the network, its `requires_grad` flags included, in eval mode."""
        root = copy.deepcopy(self.clone())
        for parameter, trains in zip(root.parameters(), self.trains, strict=True):
            parameter.requires_grad_(trains)
        for module in root.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = buffer.detach()
        return root

    def accepts(self, keyword: str) -> bool:
        """Does the network's forward take this keyword?"""
        return self.open_keywords or keyword in self.keywords

    @property
    def network(self) -> str:
        """The network's class, by name."""
        return self.classes[0].__name__

    @property
    def _any(self) -> Tensor:
        first: Tensor = next(p for d in self.dicts for p in d["_parameters"].values() if p is not None)
        return first

    @property
    def device(self) -> torch.device:
        """Where the network's tensors are."""
        return self._any.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's first parameter."""
        return self._any.dtype

    def tensor(self, layer: str, attribute: str) -> Tensor:
        """A parameter of the view."""
        tensor = self.dicts[self.names[layer]]["_parameters"][attribute]
        assert isinstance(tensor, Tensor)
        return tensor

    def layer(self, name: str) -> tuple[type, Mapping[str, Any]]:
        """A module's class and its dictionary. A move replaces the dictionary, so it must not be kept past one."""
        number = self.names[name]
        return self.classes[number], self.dicts[number]

    def layers(self) -> Iterator[tuple[type, Mapping[str, Any]]]:
        """Class and dictionary of every module."""
        return zip(self.classes, self.dicts, strict=True)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by their names in the network, a tied one under each."""
        root = self.clone()
        return dict(root.named_parameters(remove_duplicate=False)) | dict(root.named_buffers(remove_duplicate=False))

    def written(self) -> frozenset[str]:
        """Names of the buffers that the base's own calls have written into; a counter does not identify a network."""
        buffers = self.clone().named_buffers(remove_duplicate=False)
        return self._written | {name for name, t in buffers if not t.is_inference() and t._version}

    def sites(self) -> dict[int, list[tuple[int, str]]]:
        """By the id of each parameter, every (module number, attribute) at which it is registered."""
        sites: dict[int, list[tuple[int, str]]] = {}
        for number, entries in enumerate(self.dicts):
            for key, value in entries["_parameters"].items():
                sites.setdefault(id(value), []).append((number, key))
        return sites

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_written": self.written()}  # the version counter of a copied tensor starts again

    def __deepcopy__(self, memo: dict[int, Any]) -> View:
        """A view that shares the parameters, and has copies of the buffers."""
        new = copy.copy(self)
        new.apply(lambda t: t if isinstance(t, nn.Parameter) else t.clone())
        return new

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor of the view, to move it to another device or dtype; the network stays as it is."""
        self._written = self.written()
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                if id(value) not in seen:
                    moved = function(value)
                    if isinstance(value, nn.Parameter):
                        moved = value if moved is value else nn.Parameter(moved.detach(), requires_grad=False)
                    elif isinstance(value, nn.Buffer):
                        moved = nn.Buffer(moved)
                    seen[id(value)] = (moved, value)  # the old one is kept alive so that its id stays its own
                return seen[id(value)][0]
            return _map(value, move)

        self.dicts = [{k: move(v) for k, v in d.items()} for d in self.dicts]


def _map(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the items of a container; anything else as it is."""
    if isinstance(value, dict):
        mapped = {k: function(v) for k, v in value.items()}
        if all(mapped[k] is v for k, v in value.items()) and type(value) is not dict:
            return value
        new = copy.copy(value)
        new.update(mapped)
        return new
    if type(value) in (list, tuple):
        return type(value)([function(item) for item in value])
    return value


class _DictCopier:
    """Copies one module's dictionary for a clone: some entries are shared, some copied, some hold the clone's modules.

    Dictionaries are always copied (registered tensors and hooks too), so that what a call registers stays with that
    call. This is most of a clone's cost, so each kind of entry is copied in the plainest way there is.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.empty: list[tuple[str, Callable[[], Any]]] = []
        self.flat: list[str] = []
        self.modules: list[tuple[str, list[tuple[str, int]]]] = []
        self.deep: list[str] = []
        for key, value in entries.items():
            if type(value) in (dict, OrderedDict) and not value:
                self.empty.append((key, type(value)))
            elif type(value) is dict and all(type(v) is _Module for v in value.values()):
                self.modules.append((key, [(name, int(v)) for name, v in value.items()]))
            elif type(value) in (dict, OrderedDict) and not any(map(_refers, value.values())):
                self.flat.append(key)
            elif _refers(value):
                self.deep.append(key)

    def copy(self, entries: Mapping[str, Any], new: list[nn.Module]) -> dict[str, Any]:
        """The dictionary of one module of a clone whose modules are `new`."""
        copied = dict(entries)
        for key, kind in self.empty:
            copied[key] = kind()
        for key in self.flat:
            copied[key] = entries[key].copy()
        for key, row in self.modules:
            copied[key] = {name: new[number] for name, number in row}
        for key in self.deep:
            copied[key] = _fill(entries[key], new)
        return copied


def _refers(value: Any) -> bool:
    """Does each clone need its own? True for modules, bound methods, and containers that can be written into."""
    if type(value) in (_Module, _Method) or isinstance(value, dict) or type(value) is list:
        return True
    return type(value) is tuple and any(map(_refers, value))


def _fill(value: Any, new: list[nn.Module]) -> Any:
    if type(value) is _Module:
        return new[value]
    if type(value) is _Method:
        return types.MethodType(value.function, new[value.owner])
    return _map(value, lambda item: _fill(item, new)) if isinstance(value, dict | list | tuple) else value
