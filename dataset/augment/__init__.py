"""Crops and colours of a training sample, drawn from its key."""
