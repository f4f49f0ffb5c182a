"""Slow, obvious versions of older code, to compare with.

Nothing of the framework is used here, and nothing here is used by it but by the measurements of `tool.bench`.
"""
