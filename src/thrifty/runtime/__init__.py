"""Results as running models: packed weights stay packed in memory and run through the processor's own kernels."""

from thrifty.runtime.load import load

__all__ = ["load"]
