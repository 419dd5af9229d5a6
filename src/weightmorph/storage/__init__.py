"""The file format: tensors, what they belong to, and nothing that runs.

One safetensors file. Each tensor is stored once, however many names it has. The metadata is a JSON text with a checksum
of its own and one per tensor ([`container`][weightmorph.storage.container]). A model's file holds the model's
`state_dict` and its [`ModelSpec`][weightmorph.model.ModelSpec]. The base is not in it: a
[`Fingerprint`][weightmorph.storage.Fingerprint] says which one it must be.
"""

from .container import FORMAT, Header, checksum, digest, listed, pack, replaced, save, unpack, versions
from .fingerprint import Fingerprint
from .layout import slot_data, slot_from

__all__ = [
    "FORMAT", "Fingerprint", "Header", "checksum", "digest", "listed", "pack", "replaced", "save", "slot_data",
    "slot_from", "unpack", "versions",
]  # fmt: skip
