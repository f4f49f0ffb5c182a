"""What surrounds a network: config, training, evaluation, records."""

from collections.abc import Mapping
from typing import Any


class UserError(ValueError):
    """A mistake of the user.

    The message names file, line, key or class, and says what to do.
    """


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved experiment as section.key -> value."""
    found: dict[str, Any] = {}
    for section, content in config.items():
        if isinstance(content, dict):
            found |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            found[str(section)] = content
    return found
