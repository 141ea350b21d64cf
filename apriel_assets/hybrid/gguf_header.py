"""Walk through a GGUF file's header with every length checked against the file.

Libraries that read one take lengths as they are: what comes of an array of 2^60 items is then up to their version.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from pathlib import Path

from apriel_assets.errors import UserError

_ITEM_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8
_MOST_ITEMS = 8_000_000  # in all arrays: several vocabularies; the library makes objects of each
_MOST_VALUES = 2**48  # of a tensor


def check_gguf(path: Path) -> None:
    """Check that a file is GGUF and that its header lies within it.

    Raises:
        UserError: it is not, or it does not.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Header(content).check()
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UserError(f"{path} is no whole GGUF file: {error}") from error


class _Header:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at, self._order, self._items = content, 0, "<", 0

    def check(self) -> None:
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if not version & 0xFFFF:  # written by a machine of the other byte order
            self._order = ">"
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        for _ in range(num_keys):
            self._string()
            self._value(self._number("I"), nested=False)
        for _ in range(num_tensors):
            self._tensor()

    def _tensor(self) -> None:
        self._string()
        if (num_dimensions := self._number("I")) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {num_dimensions} dimensions")
        count = 1
        for _ in range(num_dimensions):
            count *= self._number("Q")
        if count > _MOST_VALUES:
            raise ValueError(f"a tensor of {count} values")
        self._number("I")  # how values are stored
        if self._number("Q") > len(self._content):
            raise ValueError("a tensor that begins beyond the end")

    def _value(self, kind: int, *, nested: bool) -> None:
        if kind == _STRING:
            self._string()
        elif kind == _ARRAY and not nested:
            item, count = self._number("I"), self._number("Q")
            self._items += count
            if self._items > _MOST_ITEMS:
                raise ValueError(f"more than {_MOST_ITEMS:,} items in its arrays")
            if item in _ITEM_BYTES:
                self._bytes(count * _ITEM_BYTES[item])
            else:
                for _ in range(count):
                    self._value(item, nested=True)
        elif kind in _ITEM_BYTES:
            self._bytes(_ITEM_BYTES[kind])
        else:
            raise ValueError(f"a value of kind {kind}")

    def _string(self) -> None:
        self._bytes(self._number("Q"))

    def _number(self, form: str) -> int:
        return struct.unpack(self._order + form, self._bytes(struct.calcsize(form)))[0]

    def _bytes(self, count: int) -> bytes:
        if count > len(self._content) - self._at:
            raise ValueError(f"{count} bytes at {self._at}, of {len(self._content)}")
        self._at += count
        return self._content[self._at - count : self._at]
