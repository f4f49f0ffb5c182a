"""Batches of a data set, in an order that a restart continues."""
