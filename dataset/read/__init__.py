"""From list files, pictures and labels on disk to arrays."""


class DataError(ValueError):
    """A mistake in the user's data, or in what was said of them: names file, line or class, and what to do."""
