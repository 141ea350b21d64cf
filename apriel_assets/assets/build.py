"""Builds one artifact: the same function in the program's own process and in one started for the step."""

import time
from collections.abc import Mapping
from pathlib import Path

from apriel_assets.assets.asset_plan import AssetPlan, Job
from apriel_assets.progress import Progress
from resources.artifact_store import Artifact, ArtifactStore, Draft
from resources.provenance import peak_memory_bytes


def build_artifact(
    plan: AssetPlan,
    draft: Draft,
    *,
    inputs: Mapping[str, Mapping[str | None, Artifact]],
    address: str,
    partition: str | None,
    home: Path,
    progress: Progress,
    is_recorded: bool = True,
) -> None:
    """Fill a draft with what an asset (partition) is made of; not `is_recorded`: the draft will be thrown away."""
    job = Job(
        asset=plan.name,
        draft=draft,
        inputs=inputs,
        address=address,
        work_dir=ArtifactStore(home).work_directory(plan.name, address),
        home=home,
        partition=partition,
        progress=progress,
        started=time.monotonic(),
        is_recorded=is_recorded,
    )
    plan.build(job, **plan.reads, **plan.by_partition.get(partition, {}))
    draft.figures.setdefault("peak_memory_bytes", peak_memory_bytes())
