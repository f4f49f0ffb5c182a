"""From list files, pictures and labels on disk to arrays."""


class DataError(ValueError):
    """A mistake in the user's data, or about it.

    The message names file, line or class, and says what to do.
    """
