"""Results as other runtimes read them: compressed-tensors, dense safetensors, GGUF."""
