"""Slow, obvious versions of what older training and evaluation code does, written for comparison only.

Nothing of the framework is used here, and nothing here is used by it but by the measurements of `tool.bench`.
"""
