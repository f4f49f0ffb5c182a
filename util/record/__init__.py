"""The traces of a run: log, status, lock, and facts of its machine."""
