"""What an asset is: its key, the recipe values that it reads, what it is made from, how it is built.

A stage module writes a builder, `build(job, **reads)`, and names exactly the recipe values that it reads. Those
values, hashed, are the asset's code version; nothing else of the recipe can reach the builder, so nothing else can
make its result old.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.progress import Progress
from apriel_assets.slices import hashed_values
from resources.artifact_store import Artifact, Draft, digest

Builder = Callable[..., None]

# Dagster does not look for changes behind an edge to 100 partitions or more: what reads them would never be stale.
MAX_PARTITIONS = 99


def input_name(asset: str, partition: str | None) -> str:
    """Return how an input is called in provenance and addresses."""
    return f"{asset}@{partition}" if partition else asset


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
    # False in all but one of the processes of a distributed build: its draft is thrown away.
    is_recorded: bool = True

    def input(self, asset: str) -> Artifact:
        """Return the artifact of an upstream asset of which one is read: it has no partitions, or one of them."""
        (artifact,) = self.inputs[asset].values()
        return artifact

    def input_partitions(self, asset: str) -> list[Artifact]:
        """Return the artifacts of all partitions of an upstream asset."""
        return list(self.inputs[asset].values())


Verdict = tuple[bool | None, Mapping[str, Any]]
"""Whether a check holds (None: this artifact does not tell), and the figures to show with it."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What must hold of an artifact; shown in the UI with every materialization."""

    name: str
    description: str
    passes: Callable[[Artifact, Artifact | None], Verdict]  # the artifact, and the one that it replaces
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

    Raises:
        UserError: more partitions than Dagster follows.
    """

    key: str  # slash-separated, e.g. h1/probes/h6
    # What the store, and whatever is made from it, calls it: a variant's `forward_kl/h1/h6` is the h1/h6 of another
    # recipe. Empty: its key.
    name: str = ""
    variant: str | None = (
        None  # the recipe's variant that it belongs to, and runs for; None: the recipe as it is
    )
    group: str
    build: Builder
    reads: Mapping[str, Any]
    inputs: Sequence["AssetPlan | OnePartition"] = ()
    partitions: tuple[str, ...] = ()
    dynamic_partitions: str | None = None  # name of a set of partitions that grows while the program runs
    # More arguments of one partition's build. Not hashed: the partition key must already tell them apart.
    by_partition: Mapping[str | None, Mapping[str, Any]] = field(default_factory=dict)
    # Data versions of what one partition reads beside its inputs and the recipe, such as another's files.
    outside: Callable[[str | None], Mapping[str, str]] | None = None
    revision: str = "1"  # raise it when the algorithm changes what it returns
    kinds: tuple[str, ...] = ("python",)
    recipe: str = "quickstart"
    tables: tuple[str, ...] = ()
    description: str = ""
    sketch: Callable[[Artifact], Mapping[str, Any]] | None = None  # small pictures for the UI
    checks: Sequence[Check] = ()
    reads_weights: bool = True  # False: of its inputs it reads tables and provenance alone
    fresh_by: str | None = None  # cron string: between two of its ticks a materialization is due

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.key)
        if len(self.partitions) > MAX_PARTITIONS:
            raise UserError(
                f"{self.key} would have {len(self.partitions)} partitions, at most {MAX_PARTITIONS} are possible; give "
                "fewer evals.tasks or search.budgets, or spread them over several recipes"
            )

    @functools.cached_property
    def slice(self) -> dict[str, Any]:
        """The recipe values that this asset's result depends on, as plain JSON."""
        return hashed_values(self.reads)

    @functools.cached_property
    def code_version(self) -> str:
        return f"{self.revision}+{digest(self.slice, 12)}"

    def calls(self, given: "AssetPlan") -> str:
        """Return what an input is called in this asset's address, provenance and builder.

        A variant's twin of an asset calls its inputs as that one does, so the two differ only if what they hold does.
        """
        return given.name if self.name != self.key else given.key

    @property
    def is_partitioned(self) -> bool:
        return bool(self.partitions or self.dynamic_partitions)

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
            elif partition is not None and given.partitions and given.partitions == self.partitions:
                found[given.key] = (partition,)
            else:
                found[given.key] = given.partition_keys
        return found
