"""Parquet files that carry the SHA-256 of all their other bytes in their footer, so that a changed bit shows.

Parquet's own page checksums leave out the footer, and DuckDB does not look at them.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_KEY = b"seal"
_MARK = b"sha256-of-this-file-with-64-zeros-here:"
_BLANK = b"0" * 64
_TAIL = 8  # bytes: the footer's length, and the magic number
_CHUNK = 1 << 20


def write_sealed(rows: pa.Table, path: Path, metadata: Mapping[bytes, bytes], **options: Any) -> None:
    """Write a table, key-value metadata and the seal; options are those of `pyarrow.parquet.ParquetWriter`."""
    with pq.ParquetWriter(path, rows.schema, store_schema=False, **options) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({**metadata, _KEY: _MARK + _BLANK})
    place = _place(path)
    assert place is not None, f"{path} was written without its seal"
    with path.open("r+b") as file:
        file.seek(place)
        file.write(_digest(path, place))


def seal_problem(path: Path) -> str | None:
    """Say what is wrong with a file of `write_sealed`: no seal, or other bytes than were sealed; None: nothing."""
    place = _place(path)
    if place is None:
        return "has no seal: it is damaged, or of an older version"
    with path.open("rb") as file:
        file.seek(place)
        if file.read(len(_BLANK)) != _digest(path, place):
            return "has other content than was written"
    return None


def _place(path: Path) -> int | None:
    """Return where the seal's digits begin; only the footer is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        tail = file.read(_TAIL)
        length = struct.unpack("<I", tail[:4])[0] + _TAIL if len(tail) == _TAIL else size + 1
        if length > size:
            return None
        file.seek(size - length)
        footer = file.read(length)
    found = footer.rfind(_MARK)
    place = size - length + found + len(_MARK)
    return place if found >= 0 and place + len(_BLANK) <= size else None


def _digest(path: Path, place: int) -> bytes:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        position = 0
        while chunk := file.read(_CHUNK):
            start, end = max(0, place - position), max(0, place + len(_BLANK) - position)
            hashed.update(chunk[:start] + _BLANK[: len(chunk[start:end])] + chunk[end:])
            position += len(chunk)
    return hashed.hexdigest().encode()
