"""Immutable, input-addressed artifacts: the same inputs and code give the same address, so nothing is built twice.

An artifact is a directory `artifacts/<asset>/<address>/` with its payload and `provenance.json`. It appears in
one step when it is complete. An edit of the recipe gives another address; undoing the edit finds the old one.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from apriel_assets.errors import UserError
from apriel_assets.seals import digest, file_facts, is_whole, sealed
from resources.atomic import created_directory, sweep_drafts
from resources.build_lock import build_lock
from resources.file_hashes import ABSENT, first_damage, forget, remember, unreadable

PROVENANCE = "provenance.json"
SEAL = "provenance_sha256"  # of all other keys, as canonical JSON
FORMAT = 1  # of an artifact's directory; raise it when an older program would misread a newer one
LEFT_OUT = "left_out.json"  # in an artifact of a home that was packed: its files that did not come along


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A complete artifact on disk."""

    path: Path
    provenance: dict[str, Any]

    @property
    def address(self) -> str:
        return self.provenance["address"]

    @property
    def data_version(self) -> str:
        return self.provenance["data_version"]

    @property
    def left_out(self) -> list[str]:
        """The files that were left behind when the home was packed (`resources/packed_home.py`)."""
        kept = expected_files(self.path, self.provenance)
        return [name for name in self.provenance["files"] if name not in kept]

    @property
    def table_names(self) -> list[str]:
        return sorted(path.stem for path in self.path.glob("tables/*.parquet"))

    def table(self, name: str) -> pa.Table:
        """Read one of the result tables that this artifact's asset produced."""
        return pq.read_table(self.path / "tables" / f"{name}.parquet")


@dataclass(kw_only=True)
class Draft:
    """An artifact under construction: write the payload under `path`, tables and figures here."""

    path: Path
    tables: dict[str, pa.Table] = field(default_factory=dict)
    figures: dict[str, Any] = field(
        default_factory=dict
    )  # seconds, tokens, peak memory...: kept in provenance
    data_version: str | None = None  # None: the address


@dataclass(frozen=True)
class ArtifactStore:
    """All artifacts of one home. Several processes may use it at once."""

    home: Path

    def directory(self, asset: str, address: str) -> Path:
        return self.home / "artifacts" / asset / address

    def work_directory(self, asset: str, address: str) -> Path:
        """Return where a build that can resume keeps its state; removed when the artifact is complete."""
        return self.home / "work" / asset / address

    def address(
        self, asset: str, code_version: str, inputs: Mapping[str, str], partition: str | None = None
    ) -> str:
        """Return the address of what `asset` makes from these input data versions with this code and recipe."""
        return digest([asset, code_version, dict(inputs), partition])

    def find(self, asset: str, address: str) -> Artifact | None:
        """Return the artifact at this address, or None if it is absent or damaged.

        Raises:
            UserError: one of its files is there and cannot be read.
        """
        path = self.directory(asset, address)
        provenance = _read_provenance(path)
        if provenance is None or self._damage(asset, address, provenance):
            return None
        return Artifact(path=path, provenance=provenance)

    def damage(self, asset: str, address: str) -> str | None:
        """Say what is wrong with an artifact: a file that is missing or has other bytes than were written, or None."""
        provenance = _read_provenance(self.directory(asset, address))
        if provenance is None:
            return f"{PROVENANCE} is missing or damaged"
        return self._damage(asset, address, provenance)

    def provenance(self, asset: str, address: str) -> dict[str, Any] | None:
        """Return what is recorded of an artifact, or None if that is missing or damaged; files are not looked at.

        Raises:
            UserError: it is there and cannot be read, or a newer version wrote it.
        """
        return _read_provenance(self.directory(asset, address))

    def distrust(self, asset: str, address: str) -> None:
        """Have whoever looks next at an artifact read all of its files again, however large and unchanged they look."""
        directory = self.directory(asset, address)
        with contextlib.suppress(UserError):
            files = (_read_provenance(directory) or {}).get("files", {})
            forget(directory, files, self._verified(asset, address))

    def _damage(self, asset: str, address: str, provenance: Mapping[str, Any]) -> str | None:
        directory = self.directory(asset, address)
        files = expected_files(directory, provenance)
        return first_damage(directory, files, self._verified(asset, address))

    def _verified(self, asset: str, address: str) -> Path:
        return self.home / "verified" / asset / f"{address}.json"

    def provenances(self, asset: str) -> list[dict[str, Any]]:
        """Return the provenance of what is stored of an asset and can be read, oldest first; files are not checked."""
        found = []
        for path in self.directory(asset, "").glob("[!.]*"):
            with contextlib.suppress(UserError):
                found.append(_read_provenance(path))
        return sorted((own for own in found if own), key=lambda own: own["finished_unix_s"])

    @contextlib.contextmanager
    def create(self, asset: str, address: str, provenance: Mapping[str, Any]) -> Iterator[Draft]:
        """Yield a draft; when the block ends well, it is published whole, with hashes of every file.

        A damaged artifact stays until then: of what cannot be built again, the rest may be worth something.
        """
        final = self.directory(asset, address)
        aside = final.with_name(f".{final.name}.damaged")
        started = time.time()
        with created_directory(final) as temporary:
            draft = Draft(path=temporary)
            yield draft
            if draft.tables:
                (temporary / "tables").mkdir()
            for name, table in draft.tables.items():
                pq.write_table(table, temporary / "tables" / f"{name}.parquet")
            record = {
                **provenance,
                "address": address,
                "asset": asset,
                "format": FORMAT,
                "data_version": draft.data_version or address,
                "figures": {"seconds": time.time() - started, **draft.figures},
                "finished_unix_s": time.time(),
                "files": file_facts(temporary, filter(Path.is_file, temporary.rglob("*"))),
            }
            text = json.dumps(sealed(record, SEAL), indent=1, sort_keys=True) + "\n"
            (temporary / PROVENANCE).write_text(text)
            if final.exists() and self.find(asset, address) is None:
                shutil.rmtree(aside, ignore_errors=True)
                final.rename(aside)  # it would shadow the new one
            remember(temporary, final, record["files"], self._verified(asset, address))
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self.work_directory(asset, address), ignore_errors=True)

    def get_or_create(
        self, asset: str, address: str, provenance: Mapping[str, Any], build: Callable[[Draft], None]
    ) -> tuple[Artifact, bool]:
        """Return the artifact and whether it was built now (False: it was there already).

        If another process builds the same artifact, wait for it.
        """
        if (artifact := self.find(asset, address)) is not None:
            return artifact, False
        lock = self.home / "work" / ".locks" / f"{asset.replace('/', '.')}.{address}"
        with build_lock(lock):
            if (artifact := self.find(asset, address)) is not None:
                return artifact, False
            sweep_drafts(self.directory(asset, address))
            with self.create(asset, address, provenance) as draft:
                build(draft)
        artifact = self.find(asset, address)
        assert artifact is not None, f"{asset}/{address} vanished after it was written"
        return artifact, True


def _read_provenance(directory: Path) -> dict[str, Any] | None:
    """Return the provenance, or None if there is none or it is not as it was written.

    Raises:
        UserError: it is there and cannot be read.
    """
    try:
        found = json.loads((directory / PROVENANCE).read_text())
        # Artifacts from before there were formats may lack the seal, and are then taken as they are.
        good = is_whole(found, SEAL) if SEAL in found or "format" in found else "files" in found
    except (*ABSENT, ValueError, AttributeError, TypeError):
        return None
    except OSError as error:
        raise unreadable(directory / PROVENANCE, error) from error
    if good and found.get("format", 0) > FORMAT:
        raise UserError(
            f"{directory} has format {found['format']}, this version reads up to {FORMAT}; use the apriel-assets that "
            "wrote it, or another home"
        )
    return found if good else None


def expected_files(directory: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of the files that an artifact must have: all, or those that came along in a packed home."""
    try:
        left_out = set(json.loads((directory / LEFT_OUT).read_text()))
    except (*ABSENT, ValueError, TypeError):
        left_out = set()
    files = provenance["files"]
    return {name: files[name] for name in files if name not in left_out or (directory / name).exists()}
