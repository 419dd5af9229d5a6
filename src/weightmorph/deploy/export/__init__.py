"""Export graphs that run without this library and take θ as an input: `torch.export` and ONNX."""

from .onnx import PlainGraph, computed_weights, export_onnx
from .program import export_program

__all__ = ["PlainGraph", "computed_weights", "export_onnx", "export_program"]
