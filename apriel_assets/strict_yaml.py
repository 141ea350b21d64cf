"""YAML that people write for us: plain values, each key once, no larger and no deeper than a person writes.

PyYAML's safe loader takes the last of two equal keys, lets ten lines of aliases stand for gigabytes, and raises errors
of a dozen kinds on malformed numbers, dates and nesting.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from apriel_assets.errors import UserError

_MOST_CHARACTERS = 1_000_000  # of a text, comments included: PyYAML takes seconds for as many
_MOST_WRITTEN = 200_000  # characters of all keys and values, with every alias written out
_DEEPEST = 32
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
# What no name, path or text has: control characters but for white space, and halves of characters.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """Reads dates as text: no recipe has a date, and many a name looks like one."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:  # what tables and generators take
            raise ValueError(f"a whole number of {len(node.value)} digits{_place(node)}")
        return value


_Loader.add_constructor(_TAG + "int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != _TAG + "timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """Return what a text says.

    Raises:
        ValueError: it is not YAML, or more than plain values; says where, if that is known.
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"more than {_MOST_CHARACTERS:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise ValueError(f"nested deeper than {_DEEPEST} levels") from error
    # A malformed number or date is a ValueError, a TypeError or whatever else its parser comes across.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(str(error)) from error


def read_yaml(path: Path, what: str) -> Any:
    """Return what a file says.

    Args:
        path: the file.
        what: what it is to the user, for the message.

    Raises:
        UserError: it cannot be read, is not UTF-8, or `parse_yaml` refuses it.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(4 * _MOST_CHARACTERS + 1)  # no character takes more bytes
        return parse_yaml(content.decode("utf-8"))
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{what} {path}: not YAML: {error}") from error


def _check(root: yaml.Node) -> None:
    """Refuse what stands for more than it says, before anything is made of it."""
    measured: dict[int, tuple[int, int]] = {}
    under_way: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Return how many characters a node stands for, and how many levels."""
        if id(node) in under_way:
            raise ValueError(f"an alias that holds itself{_place(node)}")
        if id(node) not in measured:
            under_way.add(id(node))
            _check_one(node)
            inner = [measure(part) for part in _inner(node)]
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            count = 1 + own + sum(characters for characters, _ in inner)
            depth = 1 + max((levels for _, levels in inner), default=0)
            if depth > _DEEPEST:
                raise ValueError(f"nested deeper than {_DEEPEST} levels{_place(node)}")
            if count > _MOST_WRITTEN:
                raise ValueError(f"more than {_MOST_WRITTEN:,} characters, aliases written out{_place(node)}")
            measured[id(node)] = count, depth
            under_way.discard(id(node))
        return measured[id(node)]

    measure(root)


def _check_one(node: yaml.Node) -> None:
    if node.tag not in _PLAIN:
        raise ValueError(f"{node.tag.removeprefix(_TAG)} is no plain value{_place(node)}")
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"a key that is no name{_place(key)}")
            if (name := (key.tag, key.value)) in seen:
                raise ValueError(f"key {key.value} twice{_place(key)}")
            seen.add(name)
    elif isinstance(node, yaml.ScalarNode) and (odd := _NO_TEXT.search(node.value)):
        raise ValueError(f"character {odd.group()!r}{_place(node)}")


def _inner(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from (key, value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _place(node: yaml.Node) -> str:
    return f", line {node.start_mark.line + 1}"
