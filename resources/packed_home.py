"""A home as one small file, to go on with on another machine, its finished models' weights left behind.

A file that holds everything but: training states of unfinished builds, and weights that nothing unfinished will read.
What several models have in common, as a supernet and its teacher do, is in it once.
"""

import hashlib
import itertools
import json
import shutil
import struct
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from apriel_assets.errors import UserError
from resources.artifact_store import LEFT_OUT
from resources.atomic import created_directory, replaced_file

# Read again from what is kept, or of no use elsewhere.
_LEFT_BEHIND = ("work", "verified")
_WEIGHTS = ".safetensors"
_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2}
_LIST = "weights.json"


@dataclass(frozen=True, kw_only=True)
class PackedHome:
    """What a packed home takes."""

    file_bytes: int
    weight_bytes: int  # of weights that are in it, before sharing and compression
    left_out_bytes: int  # of weights that are not
    other_bytes: int  # of all other files, before compression


def pack_home(home: Path, archive: Path, needed: Collection[Path]) -> PackedHome:
    """Write a home as one file, atomically; nothing may work on the home meanwhile.

    Args:
        home: as it is; nothing in it is changed.
        archive: written.
        needed: directories of the artifacts whose weights stay in.
    """
    kept, left_out, others = [], [], []
    for path in _files(home):
        if path.suffix != _WEIGHTS:
            others.append(path)
        elif (artifact := _artifact_of(path, home)) is None or artifact in needed:
            kept.append(path)
        else:
            left_out.append((artifact, path))
    with replaced_file(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in others:
            packed.write(path, f"files/{path.relative_to(home).as_posix()}")
        for artifact, group in itertools.groupby(left_out, key=lambda pair: pair[0]):
            names = [path.relative_to(artifact).as_posix() for _, path in group]
            marker = (artifact / LEFT_OUT).relative_to(home).as_posix()
            packed.writestr(f"files/{marker}", json.dumps(names))
        packed.writestr(_LIST, json.dumps(_write_weights(packed, home, kept)))
    return PackedHome(
        file_bytes=archive.stat().st_size,
        weight_bytes=sum(path.stat().st_size for path in kept),
        left_out_bytes=sum(path.stat().st_size for _, path in left_out),
        other_bytes=sum(path.stat().st_size for path in others),
    )


def unpack_home(archive: Path, home: Path) -> None:
    """Make a home of a packed one, whole or not at all.

    Raises:
        UserError: there is a home already, or the file is no packed home or damaged.
    """
    if home.exists() and any(home.iterdir()):
        raise UserError(f"{home} is not empty; unpack {archive} to another --home")
    if home.exists():
        home.rmdir()
    try:
        with created_directory(home) as fresh, zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                if name.startswith("files/"):
                    target = _inside(fresh, name.removeprefix("files/"))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(name) as source, target.open("wb") as written:
                        shutil.copyfileobj(source, written)
            for name, chunks in json.loads(packed.read(_LIST)).items():
                target = _inside(fresh, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as written:
                    for chunk, item_bytes in chunks:
                        written.write(_joined(packed.read(f"weights/{chunk}"), item_bytes))
    except (zipfile.BadZipFile, KeyError, ValueError, FileNotFoundError) as error:
        raise UserError(f"{archive} is no packed home, or it is damaged: {error}") from error


def _files(home: Path) -> Iterator[Path]:
    """Return what may be packed, in a fixed order."""
    for path in sorted(home.rglob("*")):
        parts = path.relative_to(home).parts
        # Temporary and lock files begin with a dot.
        if (
            path.is_file()
            and parts[0] not in _LEFT_BEHIND
            and not any(part.startswith(".") for part in parts)
        ):
            yield path


def _artifact_of(path: Path, home: Path) -> Path | None:
    """Return the directory of the artifact that a file belongs to: the nearest that has a provenance."""
    between = itertools.takewhile(lambda directory: directory != home, path.parents)
    return next((directory for directory in between if (directory / "provenance.json").is_file()), None)


def _write_weights(
    packed: zipfile.ZipFile, home: Path, files: list[Path]
) -> dict[str, list[tuple[str, int]]]:
    """Write each distinct tensor once; return which ones make up each file, with the bytes of their numbers."""
    found, written = {}, set()
    for path in files:
        chunks = []
        for content, item_bytes in _chunks(path):
            name = hashlib.sha256(content).hexdigest()
            chunks.append((name, item_bytes))
            if (name, item_bytes) not in written:
                # The header of a file and its tensors alike; two numbers' widths make two entries of one content.
                written.add((name, item_bytes))
                packed.writestr(f"weights/{name}.{item_bytes}", _split(content, item_bytes))
        found[path.relative_to(home).as_posix()] = [(f"{name}.{width}", width) for name, width in chunks]
    return found


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Return a safetensors file in pieces, first the header, with how many bytes each number takes."""
    with path.open("rb") as stream:
        length = stream.read(8)
        header = stream.read(struct.unpack("<Q", length)[0])
        yield length + header, 1
        tensors = [own for name, own in json.loads(header).items() if name != "__metadata__"]
        for own in sorted(tensors, key=lambda own: own["data_offsets"]):
            begin, end = own["data_offsets"]
            yield stream.read(end - begin), _ITEM_BYTES.get(own["dtype"], 1)


def _split(content: bytes, item_bytes: int) -> bytes:
    """Put first bytes of all numbers together, then second bytes: signs and exponents compress well by themselves."""
    return np.frombuffer(content, np.uint8).reshape(-1, item_bytes).T.tobytes()


def _joined(content: bytes, item_bytes: int) -> bytes:
    return np.frombuffer(content, np.uint8).reshape(item_bytes, -1).T.tobytes()


def _inside(directory: Path, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name} would be written outside of it")
    return directory / name
