"""The training: its loop, optimiser, and how it continues."""
