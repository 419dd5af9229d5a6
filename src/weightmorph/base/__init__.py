"""The frozen network, read and never written.

A [`View`][weightmorph.base.view.View] holds the network as data. [`select`][weightmorph.base.select] says which of its
tensors are conditioned, [`inspect`][weightmorph.base.inspect] learns their geometry by running an example,
[`install`][weightmorph.base.install] puts other weights into a plain copy, and
[`fuse_batchnorm`][weightmorph.base.fuse_batchnorm] fuses norms into the layers before them.
"""

from .inspect import Inspection, Usage, as_call, inspect_base, merged_slots
from .install import GEOMETRY, set_kernel_geometry
from .select import Select, described, floating, read_as_maps, select_slots
from .view import View

__all__ = [
    "GEOMETRY", "Inspection", "Select", "Usage", "View", "as_call", "described", "floating", "inspect_base",
    "merged_slots", "read_as_maps", "select_slots", "set_kernel_geometry",
]  # fmt: skip
