"""The arithmetic of sliding windows on a CPU."""
