"""YAML text to plain values.

Words, numbers, lists and mappings, or a `ConfigError` with the line.
"""

import re
from typing import Any

import yaml

from util import UserError

TAG = "tag:yaml.org,2002:"
NUMBERS = (f"{TAG}int", f"{TAG}float")
PLAIN = (*NUMBERS, *(TAG + kind for kind in ("null", "bool", "str", "seq", "map")))


class ConfigError(UserError):
    """An experiment that cannot be run as it is written."""


class _Loader(yaml.SafeLoader):
    """Reads numbers as people write them: 1e-4 is one; 010 and 1:0, which YAML 1.1 reads as 8 and 60, are refused."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] in PLAIN]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            refuse(self.peek_event(), "an alias (*name); write the value out, or share it through 'base'")
        return super().compose_node(parent, index)

    def construct_object(self, node, deep=False):
        if node.tag not in PLAIN:
            refuse(node, f"the tag {node.tag}; only words, numbers, lists and mappings are read")
        if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and re.match(r"[-+]?0[0-9_]|.*:", node.value):
            refuse(node, f"'{node.value}' can be read in two ways; write a plain decimal number, or quote the text")
        return super().construct_object(node, deep)

    def construct_mapping(self, node, deep=False):
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                refuse(key_node, "a key is a word or a whole number")
            if str(key) in lines:
                refuse(key_node, f"key '{key}' was given before, on line {lines[str(key)]}")
            lines[str(key)] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    f"{TAG}float", re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)


def refuse(place: yaml.Event | yaml.Node, problem: str) -> None:
    """Raise the error that `parse_yaml` tells with the line of `place`."""
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def parse_yaml(text: str, name: str) -> Any:
    """Read the plain value of a YAML text.

    Args:
        name: what an error calls the text, for example the file's path.

    Raises:
        ConfigError: names the text, the line and the problem.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        syntax = "" if type(error) is yaml.MarkedYAMLError else "not valid YAML: "  # ours, from `refuse`
        raise ConfigError(f"{name}{line}: {syntax}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {getattr(error, 'reason', error)}") from None
    except (ValueError, LookupError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from None
