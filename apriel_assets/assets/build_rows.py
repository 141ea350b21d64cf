"""The `builds` row of an artifact: what any other table's row leads back to by its `version`."""

import pyarrow as pa

from apriel_assets.tables.schemas import to_table
from resources.artifact_store import Artifact


def build_row(artifact: Artifact) -> pa.Table:
    """Return when, where, from which code and how long the artifact was built."""
    provenance, figures = artifact.provenance, artifact.provenance["figures"]
    row = {name: provenance.get(name) for name in ("asset", "partition", "date", "code", "device", "address")}
    row |= {name: figures.get(name) for name in ("seconds", "gpu_seconds", "peak_memory_bytes")}
    row |= {"seed": provenance["recipe_slice"].get("seed"), "tables": artifact.table_names}
    return to_table("builds", [row])
