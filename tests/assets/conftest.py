"""Made-up artifacts, for whatever reads finished ones."""

import pyarrow.parquet as pq
import pytest

from apriel_assets.seals import file_digest
from apriel_assets.tables.schemas import to_table
from resources.artifact_store import Artifact


@pytest.fixture
def make_artifact(tmp_path_factory):
    """Write tables (as rows) and files as an artifact's, with figures and a recipe slice."""

    def make(tables=None, figures=None, recipe_slice=None, files=None, address="one"):
        path = tmp_path_factory.mktemp("artifact")
        (path / "tables").mkdir()
        for name, rows in (tables or {}).items():
            pq.write_table(to_table(name, rows), path / "tables" / f"{name}.parquet")
        for name, content in (files or {}).items():
            (path / name).write_bytes(content)
        facts = {name: {"sha256": file_digest(path / name)} for name in files or {}}
        provenance = {
            "figures": figures or {},
            "recipe_slice": recipe_slice or {},
            "files": facts,
            "address": address,
        }
        return Artifact(path=path, provenance=provenance)

    return make
