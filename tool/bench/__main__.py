"""python -m tool.bench"""

from tool import common
from tool.bench import main

common.command(main)
