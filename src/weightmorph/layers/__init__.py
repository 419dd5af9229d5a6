"""Layer operations: functions that consume a weight, with their geometry and costs, and constants of the processor.

A new kind of layer is one file here, a class of the shape of [`LayerOp`][weightmorph.layers.LayerOp], and one entry in
`weightmorph.execution.handlers`.
"""

from .base import LayerOp, Part
from .convolution import Convolution, TransposedConvolution, each, with_room
from .cost import Cost, LayerSize, cached_unless_tracing
from .linear import Linear
from .memory import (
    chunk_length,
    chunks,
    full_precision,
    layer_dtype,
    rematerialise,
    reshape_owned,
    should_rematerialise,
)
from .processor import Processor, current, using

__all__ = [
    "Convolution", "Cost", "LayerOp", "LayerSize", "Linear", "Part", "Processor", "TransposedConvolution",
    "cached_unless_tracing", "chunk_length", "chunks", "current", "each", "full_precision", "layer_dtype",
    "rematerialise", "reshape_owned", "should_rematerialise", "using", "with_room",
]  # fmt: skip
