"""Prints docs/config.md, the table of every key, from the schema.

python -m tool.doc.config > docs/config.md
"""

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from util.config.schema import Config

HEAD = """# Every key of an experiment

A YAML file has the sections below and `seed`. The files that `base:` names are merged first
([experiments.md](experiments.md)). On the command line a key is `section.key=value`, the value read as YAML. An unknown
key, a wrong type or a missing key stops the run before anything is built. This page is made from the schema by
`python -m tool.doc.config > docs/config.md`.
"""


def kind(field: FieldInfo) -> str:
    """Write the type of a key as a reader would."""
    return written(field.annotation).replace("|", "\\|")


def written(annotation: Any) -> str:
    """Write a type, without what bounds or converts its values."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in (None, type(None)):
        return "none"
    if origin in (Union, UnionType):
        return " | ".join(map(written, inner))
    if origin is Annotated:
        return written(inner[0])
    if origin is None or origin is Literal:
        return str(annotation).replace("typing.", "") if origin is Literal else getattr(annotation, "__name__", "...")
    return f"{origin.__name__}[{', '.join(map(written, inner))}]"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "none" if value is None else f"`{value}`"


def page() -> str:
    lines = [HEAD]
    for name, field in Config.model_fields.items():
        section = field.annotation
        lines += [f"## {name}", ""]
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            lines += [f"{field.description}; default {field.default}.", ""]
            continue
        lines += [section.__doc__.strip(), "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for key, value in section.model_fields.items():
            lines.append(f"| `{key}` | {kind(value)} | {default(value)} | {value.description} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print(page())
