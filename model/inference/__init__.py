"""A trained network made ready for inference: folded, compiled, exported."""
