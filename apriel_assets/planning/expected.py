"""What a build will take: from what builds took before, else from a formula where the recipe gives one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apriel_assets.assets.asset_plan import AssetPlan
from resources.artifact_store import ArtifactStore

STORED, CAPACITY = "stored", "capacity"
LATEST = "*"  # no partition is called so

Run = Mapping[str, Any]  # an artifact's provenance


@dataclass(frozen=True)
class Expected:
    """What a row of the plan is expected to take, and by which run; None: nothing is known."""

    seconds: float | None = None
    gpu_seconds: float | None = None
    source: str | None = None


NOTHING_TO_BUILD = Expected(0.0, 0.0, STORED)

Estimate = Callable[[AssetPlan, str | None], Expected]
"""What a formula says of one partition of an asset."""


def changed_leaves(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) for every leaf in which two recipe slices differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            leaf
            for key in sorted(set(before) | set(after))
            for leaf in changed_leaves(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if before == after else [(prefix, before, after)]


class PastRuns:
    """All stored artifacts' provenance, read once an asset, and what they say about the next build."""

    def __init__(
        self, assets: Mapping[str, AssetPlan], store: ArtifactStore, estimate: Estimate | None = None
    ) -> None:
        self._assets = assets
        self._store = store
        self._estimate = estimate
        self._stored: dict[str, dict[str, list[Run]]] = {}
        self._nearest: dict[str, _Nearest] = {}

    def expected(self, asset: AssetPlan, partition: str | None) -> Expected:
        """Return what the nearest stored run took: of this asset, else of one that is built by the same code.

        Where a formula says something, only runs of the same recipe count: another's teacher may be of any size.
        """
        if asset.key not in self._nearest:
            siblings = [own for own in self._assets.values() if own.build is asset.build and own is not asset]
            self._nearest[asset.key] = self._search(asset, [asset]) or self._search(asset, siblings)
        nearest = self._nearest[asset.key]
        run = nearest.runs.get(partition) or nearest.runs.get(LATEST)
        formula = self._estimate(asset, partition) if self._estimate else Expected()
        if run is None or (formula.source and run["recipe"] != asset.recipe):
            return formula
        if run["asset"] != asset.name:
            source = run["asset"]
        else:
            source = "same values" if nearest.num_changed == 0 else "nearest values"
        return Expected(run["figures"].get("seconds"), run["figures"].get("gpu_seconds"), source)

    def _search(self, asset: AssetPlan, candidates: Iterable[AssetPlan]) -> "_Nearest":
        """Return the runs with the fewest changed recipe values, by partition the latest."""
        best, own_slice = _Nearest(), asset.slice
        for candidate in candidates:
            for runs in self._of(candidate.name).values():
                num_changed = len(changed_leaves(runs[0]["recipe_slice"], own_slice))
                if not best.runs or num_changed < best.num_changed:
                    best = _Nearest(num_changed)
                if num_changed == best.num_changed:
                    for run in runs:
                        best.add(run)
        return best

    def _of(self, asset: str) -> dict[str, list[Run]]:
        if asset not in self._stored:
            by_code: dict[str, list[Run]] = {}
            for run in self._store.provenances(asset):
                by_code.setdefault(run["code_version"], []).append(run)
            self._stored[asset] = by_code
        return self._stored[asset]


class _Nearest:
    """Runs that are equally far from what is asked for: the latest of each partition, and the latest of all."""

    def __init__(self, num_changed: int = 0) -> None:
        self.num_changed = num_changed
        self.runs: dict[str | None, Run] = {}

    def __bool__(self) -> bool:
        return bool(self.runs)

    def add(self, run: Run) -> None:
        for place in (run["partition"], LATEST):
            before = self.runs.get(place)
            if before is None or before["finished_unix_s"] < run["finished_unix_s"]:
                self.runs[place] = run
