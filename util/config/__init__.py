"""Experiments: from YAML to frozen, typed sections."""

from util.config.load import apply_overrides, check_config, dump_config, load_config, merge, read_experiment, valid_keys
from util.config.schema import Config
from util.config.yamltext import ConfigError

__all__ = [
    "Config",
    "ConfigError",
    "apply_overrides",
    "check_config",
    "dump_config",
    "load_config",
    "merge",
    "read_experiment",
    "valid_keys",
]
