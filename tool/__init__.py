"""The commands: each module is run as `python -m tool.NAME`."""
