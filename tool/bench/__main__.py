"""Runs `python -m tool.bench`."""

from tool.bench import main
from tool.shared import cli

cli.command(main)
