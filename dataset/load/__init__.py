"""From a data set to batches, in an order that a restart continues."""
