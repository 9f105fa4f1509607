"""Results as running models: packed weights stay packed in memory and run through the processor's own kernels."""
