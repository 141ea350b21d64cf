"""One way to make an asset: an input-addressed artifact whose tables go to the lake.

A stage module writes a builder, `build(job, **reads)`, and names exactly the recipe values that it reads. Those
values, hashed, are the asset's code version; nothing else of the recipe can reach the builder, so nothing else can
make its result old.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import TypeAdapter

from apriel_assets.errors import UserError
from apriel_assets.progress import Progress
from resources import listeners
from resources.artifact_store import Artifact, Draft, digest
from resources.home import Home
from resources.provenance import environment, peak_memory_bytes

Builder = Callable[..., None]
SLICE_METADATA = "recipe_slice"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a builder is given besides its slice of the recipe."""

    asset: str
    draft: Draft
    inputs: Mapping[str, Mapping[str | None, Artifact]]
    address: str
    work_dir: Path  # survives a killed build of the same address: resume from here
    home: Path
    partition: str | None
    progress: Progress
    started: float  # time.monotonic() when the build began

    def input(self, asset: str) -> Artifact:
        """Return the artifact of an upstream asset of which one is read: it has no partitions, or one of them."""
        (artifact,) = self.inputs[asset].values()
        return artifact

    def input_partitions(self, asset: str) -> list[Artifact]:
        """Return the artifacts of all partitions of an upstream asset."""
        return list(self.inputs[asset].values())


@dataclass(frozen=True, kw_only=True)
class Check:
    """What must hold of an artifact; shown in the UI with every materialization."""

    name: str
    description: str
    passes: Callable[[Artifact], tuple[bool, Mapping[str, Any]]]  # verdict, figures to show
    blocking: bool = False  # True: what is made from a failing artifact does not run


@dataclass(frozen=True)
class OnePartition:
    """An input of which a single partition is read."""

    asset: "AssetPlan"
    partition: str


@dataclass(frozen=True, kw_only=True)
class AssetPlan:
    """Everything about one asset but its builder's body.

    An input with the same partitions is read partition by partition, any other one whole.
    """

    key: str  # slash-separated, e.g. h1/probes/h6
    group: str
    build: Builder
    reads: Mapping[str, Any]
    inputs: Sequence["AssetPlan | OnePartition"] = ()
    partitions: tuple[str, ...] = ()
    # More arguments of one partition's build. Not hashed: the partition key must already tell them apart.
    by_partition: Mapping[str | None, Mapping[str, Any]] = field(default_factory=dict)
    revision: str = "1"  # raise it when the algorithm changes what it returns
    kinds: tuple[str, ...] = ("python",)
    recipe: str = "quickstart"
    tables: tuple[str, ...] = ()
    description: str = ""
    sketch: Callable[[Artifact], Mapping[str, Any]] | None = None  # small pictures for the UI
    checks: Sequence[Check] = ()

    @property
    def slice(self) -> dict[str, Any]:
        """The recipe values that this asset reads, as plain JSON."""
        return TypeAdapter(dict[str, Any]).dump_python(dict(self.reads), mode="json")

    @property
    def code_version(self) -> str:
        return f"{self.revision}+{digest(self.slice, 12)}"

    @property
    def partition_keys(self) -> tuple[str | None, ...]:
        return self.partitions or (None,)

    @property
    def upstream(self) -> tuple["AssetPlan", ...]:
        """The assets that this one is made from."""
        return tuple(given.asset if isinstance(given, OnePartition) else given for given in self.inputs)

    def reads_of(self, partition: str | None) -> dict[str, tuple[str | None, ...]]:
        """Return which partitions of each input one partition of this asset is made from."""
        found: dict[str, tuple[str | None, ...]] = {}
        for given in self.inputs:
            if isinstance(given, OnePartition):
                found[given.asset.key] = (given.partition,)
            elif partition is not None and given.partitions == self.partitions:
                found[given.key] = (partition,)
            else:
                found[given.key] = given.partition_keys
        return found


def latest_address(instance: dg.DagsterInstance, asset: str, partition: str | None) -> str | None:
    """Return the address recorded by the last materialization of an asset (partition), or None."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey(asset.split("/")), asset_partitions=[partition] if partition else None
        ),
        limit=1,
    ).records
    if not records or records[0].asset_materialization is None:
        return None
    value = records[0].asset_materialization.metadata.get("address")
    return str(value.value) if value else None


def to_dagster(plan: AssetPlan) -> dg.AssetsDefinition:
    """Turn an asset plan into a Dagster asset."""
    # Dagster is pinned, so its note that backfill policies may still change says nothing to a user.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return _asset(plan)


def _asset(plan: AssetPlan) -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey(plan.key.split("/")),
        deps=[_dependency(given) for given in plan.inputs],
        group_name=plan.group,
        code_version=plan.code_version,
        description=plan.description or (plan.build.__doc__ or "").strip(),
        kinds=set(plan.kinds),
        partitions_def=dg.StaticPartitionsDefinition(list(plan.partitions)) if plan.partitions else None,
        backfill_policy=dg.BackfillPolicy.single_run() if plan.partitions else None,
        metadata={SLICE_METADATA: dg.JsonMetadataValue(plan.slice)},
        check_specs=[_check_spec(plan, check) for check in plan.checks],
    )
    def materialize(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult:
        version, results = None, []
        for partition in context.partition_keys if plan.partitions else [None]:
            artifact, metadata = _bring_up(plan, context, home, partition)
            version = None if plan.partitions else dg.DataVersion(artifact.data_version)
            context.add_asset_metadata(metadata, partition_key=partition)
            results.append(artifact)
        return dg.MaterializeResult(data_version=version, check_results=_check(plan, results))

    return materialize


def _dependency(given: AssetPlan | OnePartition) -> dg.AssetDep:
    if isinstance(given, OnePartition):
        mapping = dg.SpecificPartitionsPartitionMapping([given.partition])
        return dg.AssetDep(dg.AssetKey(given.asset.key.split("/")), partition_mapping=mapping)
    return dg.AssetDep(dg.AssetKey(given.key.split("/")))


def _check_spec(plan: AssetPlan, check: Check) -> dg.AssetCheckSpec:
    key = dg.AssetKey(plan.key.split("/"))
    return dg.AssetCheckSpec(check.name, asset=key, description=check.description, blocking=check.blocking)


def _check(plan: AssetPlan, artifacts: Sequence[Artifact]) -> list[dg.AssetCheckResult]:
    """Return each check's result; of several partitions in one run, the worst."""
    found = []
    for check in plan.checks:
        verdicts = [check.passes(artifact) for artifact in artifacts]
        passed, figures = min(verdicts, key=lambda verdict: verdict[0])
        severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
        found.append(
            dg.AssetCheckResult(
                passed=passed, check_name=check.name, severity=severity, metadata=dict(figures)
            )
        )
    return found


def _bring_up(
    plan: AssetPlan, context: dg.AssetExecutionContext, home: Home, partition: str | None
) -> tuple[Artifact, dict[str, Any]]:
    inputs = _inputs(plan, context.instance, home, partition)
    versions = {
        f"{asset}@{part}" if part else asset: artifact.data_version
        for asset, parts in inputs.items()
        for part, artifact in parts.items()
    }
    address = home.store.address(plan.key, plan.code_version, versions, partition)
    step = plan.key + (f"[{partition}]" if partition else "")

    def build(draft: Draft) -> None:
        job = Job(
            asset=plan.key,
            draft=draft,
            inputs=inputs,
            address=address,
            work_dir=home.store.work_directory(plan.key, address),
            home=Path(home.path),
            partition=partition,
            progress=listeners.reporter(step, context.log),
            started=time.monotonic(),
        )
        plan.build(job, **plan.reads, **plan.by_partition.get(partition, {}))
        draft.figures.setdefault("peak_memory_bytes", peak_memory_bytes())

    provenance = {
        "partition": partition,
        "recipe": plan.recipe,
        "recipe_slice": plan.slice,
        "code_version": plan.code_version,
        "inputs": versions,
    }
    existing = home.store.find(plan.key, address)
    if existing is None:
        provenance |= environment()  # asks torch for the device: not worth it to look something up
    artifact, built = home.store.get_or_create(plan.key, address, provenance, build)
    context.log.info("%s: %s %s", step, "built" if built else "found in the store", artifact.path)
    tables = {name: artifact.table(name) for name in artifact.table_names}
    home.lake.publish(
        tables, recipe=plan.recipe, asset=plan.key, version=artifact.data_version, partition=partition
    )
    return artifact, _metadata(
        plan, artifact, built, {name: table.num_rows for name, table in tables.items()}
    )


def _inputs(
    plan: AssetPlan, instance: dg.DagsterInstance, home: Home, partition: str | None
) -> dict[str, dict[str | None, Artifact]]:
    found: dict[str, dict[str | None, Artifact]] = {}
    for upstream, partitions in plan.reads_of(partition).items():
        found[upstream] = {}
        for part in partitions:
            address = latest_address(instance, upstream, part)
            artifact = home.store.find(upstream, address) if address else None
            if artifact is None:
                name = upstream + (f"[{part}]" if part else "")
                raise UserError(
                    f"{plan.key} needs {name}, which is not built or was damaged; run `apriel run`"
                )
            found[upstream][part] = artifact
    return found


def _metadata(plan: AssetPlan, artifact: Artifact, built: bool, rows: Mapping[str, int]) -> dict[str, Any]:
    figures = {
        name: value
        for name, value in artifact.provenance["figures"].items()
        if isinstance(value, int | float | str)
    }
    return {
        "address": artifact.address,
        "path": dg.MetadataValue.path(str(artifact.path)),
        "built_now": built,
        **{f"rows_{name}": count for name, count in rows.items()},
        **figures,
        **(plan.sketch(artifact) if plan.sketch else {}),
    }
