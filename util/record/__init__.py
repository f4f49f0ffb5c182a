"""What a run leaves behind: log, status, lock, and facts of its machine."""
