"""The machinery round a network: config, processes, losses, optimiser, loop, checkpoints, evaluation, records."""
