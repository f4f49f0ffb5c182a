"""Hand-written kernels for inference on a CPU."""
