"""YAML that may be anything: plain values of bounded size and depth, or an error with the line.

Beyond the syntax this refuses what a mistake or an attack needs and an experiment does not: a key given twice,
aliases that lead into themselves or expand to more than `MAX_NODES` values, nesting deeper than `MAX_DEPTH`, objects
of any language, numbers that are not finite or longer than `MAX_NUMBER` letters, text with NUL or half a character.
"""

import math
import re
from typing import Any

import yaml

MAX_BYTES = 1 << 19
MAX_NODES = 100_000
MAX_DEPTH = 20
MAX_NUMBER = 100


class ConfigError(ValueError):
    """An experiment that cannot be run as it is written."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 does, and refuses what the module's docstring says."""

    def __init__(self, text: str, name: str):
        super().__init__(text)
        self.name = name
        self.nodes = self.depth = 0
        self.sizes: dict[int, int] = {}  # id of a finished node -> its nodes, aliases written out

    def compose_node(self, parent, index):
        event, before = self.peek_event(), self.nodes
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self.sizes:
                raise self.error(event.start_mark, f"the alias '*{event.anchor}' leads into itself")
            self.nodes += self.sizes[id(node)]
        else:
            self.nodes += 1
            self.sizes[id(node)] = self.nodes - before
        if self.nodes > MAX_NODES:
            raise self.error(event.start_mark, f"more than {MAX_NODES:,} values, aliases written out")
        return node

    def construct_object(self, node, deep=False):
        if isinstance(node, yaml.ScalarNode):
            self.check_text(node)
        try:
            value = super().construct_object(node, deep)
        except (ConfigError, yaml.YAMLError):
            raise
        except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
            raise self.error(node.start_mark, f"not a value of the kind {node.tag}: {error}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(node.start_mark, f"{node.value} is not a finite number")
        return value

    def check_text(self, node: yaml.ScalarNode) -> None:
        numeric = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if numeric and len(node.value) > MAX_NUMBER:
            raise self.error(node.start_mark, f"a number of {len(node.value)} letters")
        if re.search("[\0\ud800-\udfff]", node.value):
            raise self.error(node.start_mark, "text with a NUL or half a character")

    def construct_mapping(self, node, deep=False):
        seen: dict[str, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float)) and key is not None:
                raise self.error(key_node.start_mark, f"a key is a word or a number, not {type(key).__name__}")
            if str(key) in seen:
                raise self.error(key_node.start_mark, f"key '{key}' was given before, on line {seen[str(key)]}")
            seen[str(key)] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def error(self, mark: yaml.Mark, text: str) -> ConfigError:
        return ConfigError(f"{self.name}:{mark.line + 1}: {text}")


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, name: str) -> Any:
    """The plain value of a YAML text of at most `MAX_BYTES` letters; `name` is what an error calls it.

    Raises ConfigError with the name and, where there is one, the line.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{name}: {len(text):,} letters; more than {MAX_BYTES:,} are not read as YAML")
    try:
        loader = _Loader(text, name)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML: {reason}") from None
