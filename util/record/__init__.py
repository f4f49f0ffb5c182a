"""What a run leaves behind: log, status, lock, facts."""
