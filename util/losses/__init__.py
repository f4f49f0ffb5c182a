"""The losses; `util.loss` lists them by name."""
