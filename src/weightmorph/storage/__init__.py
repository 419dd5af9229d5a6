"""The file format: tensors, what they belong to, and nothing that runs.

One safetensors file. Each tensor is stored once however many names it has; the metadata is a JSON text with a checksum
of its own and one per tensor ([`container`][weightmorph.storage.container]). A model's file holds the transform's
`state_dict` and a [`Record`][weightmorph.storage.Record]. The base is not in it: a
[`Fingerprint`][weightmorph.storage.Fingerprint] says which one it must be.
"""

from .container import FORMAT, Header, checksum, digest, listed, pack, replaced, save, unpack, versions
from .fingerprint import Fingerprint
from .layout import slot_data, slot_from
from .record import Record, read, write

__all__ = [
    "FORMAT", "Fingerprint", "Header", "Record", "checksum", "digest", "listed", "pack", "read", "replaced", "save",
    "slot_data", "slot_from", "unpack", "versions", "write",
]  # fmt: skip
