"""Experiments: from YAML to frozen, typed sections."""

from util.config.check import check_config
from util.config.load import Experiment, RunPaths, describe, hand_over, load, saved_config
from util.config.schema import Config
from util.config.yamltext import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "Experiment",
    "RunPaths",
    "check_config",
    "describe",
    "hand_over",
    "load",
    "saved_config",
]
