"""The machinery round a network: config, processes, losses, optimiser, loop, checkpoints, evaluation, records."""


class UserError(ValueError):
    """A mistake of the user: its message names file, line, key or class, and says what to do."""
