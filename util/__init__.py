"""What surrounds a network: config, training, evaluation, records."""


class UserError(ValueError):
    """A mistake of the user.

    The message names file, line, key or class, and says what to do.
    """
