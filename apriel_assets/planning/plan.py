"""What would run, per asset and partition, why, and what it is expected to take.

Dagster knows what is stale (`staleness`). We add what Dagster cannot know: which recipe keys changed, whether the files
of a finished artifact are as they were written, whether a stale one is still stored under its new address, and what
past builds took.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import StaleCause, StaleStatus

from apriel_assets.assets.asset_plan import AssetPlan, input_name
from apriel_assets.assets.records import latest_materializations, recorded_address
from apriel_assets.planning.expected import NOTHING_TO_BUILD, Estimate, Expected, PastRuns, changed_leaves
from apriel_assets.planning.staleness import StaleStatusResolver
from apriel_assets.planning.verdicts import Verdicts, failed_checks
from resources.artifact_store import Artifact, ArtifactStore

Place = tuple[str, str | None]  # asset and partition
Versions = dict[Place, str | None]  # what each place has or will have as data version; None: not known yet


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One asset (partition) that is not up to date."""

    asset: str
    partition: str | None
    reason: str
    seconds: float | None  # expected, None if nothing like it ever ran
    gpu_seconds: float | None  # expected wall seconds times GPUs
    expected_from: str | None  # same values, nearest values, another asset of its kind, capacity, or stored
    blocked: str | None = None  # the blocking check that failed, of what it is made from: it does not run

    @property
    def place(self) -> Place:
        return self.asset, self.partition


@dataclass(frozen=True)
class Totals:
    """Expected sums over what will run."""

    seconds: float = 0.0
    gpu_seconds: float = 0.0
    unknown: int = 0  # how many have no expectation, of seconds or of GPU seconds

    @classmethod
    def of(cls, parts: Iterable[Expected | PlanRow]) -> "Totals":
        known = list(parts)
        return cls(
            seconds=sum(part.seconds or 0.0 for part in known),
            gpu_seconds=sum(part.gpu_seconds or 0.0 for part in known),
            unknown=sum(part.seconds is None or part.gpu_seconds is None for part in known),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is stale now, and what may become stale once that has run."""

    rows: tuple[PlanRow, ...]
    following: Mapping[Place, Expected]  # what may follow
    fresh: Mapping[Place, Artifact]  # what is up to date now, whatever is selected
    settled: Mapping[Place, Artifact]  # of that, what is made from nothing that will come out otherwise

    @property
    def downstream(self) -> tuple[str, ...]:
        """The assets of which something may follow, and nothing is stale yet."""
        stale = {row.asset for row in self.rows}
        return tuple(dict.fromkeys(asset for asset, _ in self.following if asset not in stale))

    @property
    def ready(self) -> tuple[PlanRow, ...]:
        """The rows that no failed check keeps back."""
        return tuple(row for row in self.rows if not row.blocked)

    @property
    def totals(self) -> Totals:
        return Totals.of(self.ready)

    def within(self, selection: Collection[str] | None) -> "Plan":
        """Return the plan of these assets alone; None: of all."""
        if selection is None:
            return self
        return Plan(
            rows=tuple(row for row in self.rows if row.asset in selection),
            following={place: own for place, own in self.following.items() if place[0] in selection},
            fresh=self.fresh,
            settled=self.settled,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the plan in the CLI's documented JSON form."""
        keys = ("asset", "partition", "reason", "seconds", "gpu_seconds", "expected_from", "blocked")
        return {
            "rows": [{key: getattr(row, key) for key in keys} for row in self.rows],
            "downstream": list(self.downstream),
            "totals": asdict(self.totals),
            "downstream_totals": asdict(Totals.of(self.following.values())),
        }


def make_plan(
    assets: Mapping[str, AssetPlan],
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    store: ArtifactStore,
    estimate: Estimate | None = None,
) -> Plan:
    """Return all stale assets and partitions, upstream first.

    Args:
        assets: the recipe's assets by key.
        defs: the definitions made from the same recipe.
        instance: Dagster's records of the home.
        store: the home's artifacts.
        estimate: what to expect of an asset that never ran; None: nothing.
    """
    graph = defs.resolve_asset_graph()
    # Partitions that come and go by themselves, such as watched checkpoints, are their sensor's business.
    assets = {key: own for key, own in assets.items() if not own.dynamic_partitions}
    latest = latest_materializations(instance, {key: own.partition_keys for key, own in assets.items()})
    resolver = StaleStatusResolver(instance, graph, latest)
    forecast = _Forecast(assets, store, estimate)
    fresh: dict[Place, Artifact] = {}
    for key in graph.toposorted_asset_keys:
        if (asset := assets.get(key.to_user_string())) is None:
            continue
        for partition in asset.partition_keys:
            address = recorded_address(latest.get((asset.key, partition)))
            last = _last_artifact(store, asset, address)
            if resolver.get_status(key, partition) == StaleStatus.FRESH:
                reason = last if isinstance(last, str) else None
            else:
                reason = _reason(asset, resolver.get_stale_causes(key, partition), last)
            artifact = last if isinstance(last, Artifact) else None
            if reason is None and artifact is not None:
                fresh[asset.key, partition] = artifact
            forecast.add(asset, partition, reason, artifact)
    rows = _blocked(assets, forecast.rows, failed_checks(assets, instance, latest))
    settled = {place: own for place, own in fresh.items() if place not in forecast.following}
    return Plan(rows=rows, following=forecast.following, fresh=fresh, settled=settled)


class _Forecast:
    """Goes through all places, upstream first: what each will take, and which data version it will have."""

    def __init__(
        self, assets: Mapping[str, AssetPlan], store: ArtifactStore, estimate: Estimate | None
    ) -> None:
        self._store = store
        self._past = PastRuns(assets, store, estimate)
        self._versions: Versions = {}
        self._moving: set[Place] = set()  # stale, or may become so
        self.rows: list[PlanRow] = []
        self.following: dict[Place, Expected] = {}

    def add(self, asset: AssetPlan, partition: str | None, reason: str | None, last: Artifact | None) -> None:
        """Take in the next place: `reason` says why it is stale, None if it is not."""
        place = (asset.key, partition)
        reads = [(key, part) for key, parts in asset.reads_of(partition).items() for part in parts]
        if reason is None and self._moving.isdisjoint(reads):
            self._versions[place] = last.data_version if last else None
            return
        address = self._address(asset, partition, reads)
        if reason is None and last is not None and address == last.address:
            self._versions[place] = last.data_version  # what it is made from comes out as it was
            return
        stored = self._store.find(asset.name, address) if address else None
        self._moving.add(place)
        self._versions[place] = stored.data_version if stored else None
        expected = NOTHING_TO_BUILD if stored else self._past.expected(asset, partition)
        if reason is None:
            self.following[place] = expected
            return
        if stored:
            reason += " | found in the store, nothing is built"
        self.rows.append(
            PlanRow(
                asset=asset.key,
                partition=partition,
                reason=reason,
                seconds=expected.seconds,
                gpu_seconds=expected.gpu_seconds,
                expected_from=expected.source,
            )
        )

    def _address(self, asset: AssetPlan, partition: str | None, reads: Sequence[Place]) -> str | None:
        """Return the address that a place will have, or None if an input's data version is not known yet."""
        names = {given.key: asset.calls(given) for given in asset.upstream}
        versions = {input_name(names[key], part): self._versions.get((key, part)) for key, part in reads}
        known = {name: version for name, version in versions.items() if version is not None}
        if len(known) < len(versions):
            return None
        known |= asset.outside(partition) if asset.outside else {}
        return self._store.address(asset.name, asset.code_version, known, partition)


def _last_artifact(store: ArtifactStore, asset: AssetPlan, address: str | None) -> Artifact | str | None:
    """Return the last materialization's artifact, or what is wrong with it, or None if there was none."""
    if address is None:
        return None
    if found := store.find(asset.name, address):
        return found
    path = f"artifacts/{asset.name}/{address}"
    return f"files missing or damaged: {path}: {store.damage(asset.name, address)}"


def _reason(asset: AssetPlan, causes: Sequence[StaleCause], last: Artifact | str | None) -> str:
    if last is None:
        return "never built"
    if isinstance(last, str):
        return last
    parts = []
    if last.provenance["code_version"] != asset.code_version:
        changed = changed_keys(last.provenance["recipe_slice"], asset.slice)
        parts.append(f"recipe changed: {'; '.join(changed)}" if changed else "new revision of its code")
    # A dependency is an asset's key, or for partitioned assets a (key, partition) pair.
    keys: list[dg.AssetKey | None] = [getattr(c.dependency, "asset_key", c.dependency) for c in causes]  # type: ignore
    upstream = sorted({key.to_user_string() for key in keys if key is not None})
    if upstream:
        parts.append(f"upstream changed: {', '.join(upstream)}")
    return " | ".join(parts) or "; ".join(sorted({cause.reason for cause in causes})) or "stale"


def changed_keys(before: Any, after: Any) -> list[str]:
    """Return `key: old -> new` for every leaf in which two recipe slices differ."""
    return [f"{key} {_short(old)} -> {_short(new)}" for key, old, new in changed_leaves(before, after)]


def _short(value: Any, limit: int = 60) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _blocked(
    assets: Mapping[str, AssetPlan], rows: Sequence[PlanRow], verdicts: Verdicts
) -> tuple[PlanRow, ...]:
    """Mark the rows that are made from what failed a blocking check, unless that is to be rebuilt itself."""
    stale = {row.place for row in rows}
    causes = {
        (asset, part): f"{check} of {asset} failed"
        for (asset, part), check in verdicts.items()
        if (asset, part) not in stale
    }
    if not causes:
        return tuple(rows)
    failed = set(causes)
    for asset in assets.values():  # upstream first, so one pass reaches everything
        for partition in asset.partition_keys:
            read = ((key, part) for key, parts in asset.reads_of(partition).items() for part in parts)
            cause = next((causes[place] for place in read if place in causes), None)
            if cause is not None:
                causes.setdefault((asset.key, partition), cause)
    return tuple(
        replace(row, blocked=causes[row.place], reason=f"blocked: {causes[row.place]} | {row.reason}")
        if row.place in causes and row.place not in failed
        else row
        for row in rows
    )
