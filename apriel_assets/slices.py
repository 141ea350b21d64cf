"""Which part of a config counts when results are told apart: all of it, but for fields marked UNHASHED."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

# Metadata of a dataclass field that changes how a result is made, never what comes out.
UNHASHED = {"hashed": False}


def hashed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return recipe values as plain JSON, without what is marked UNHASHED."""
    return TypeAdapter(dict[str, Any]).dump_python(_stripped(values), mode="json")


def _stripped(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        counted = [own.name for own in fields(value) if own.metadata.get("hashed", True)]
        return {name: _stripped(getattr(value, name)) for name in counted}
    if isinstance(value, Mapping):
        return {key: _stripped(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_stripped(own) for own in value]
    return value
