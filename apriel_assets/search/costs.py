"""What a placement costs: cost = sum over mixers of count * cost / layers, plus overheads of the types in use.

Full attention costs 1, so the all-FA model costs 1. Engines break the linearity, for instance when one layer of
another kind splits the KV cache into groups; an overhead per mixer type stands for that.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import FULL_ATTENTION
from apriel_assets.search.config import GIVEN, MEASURED, CostsConfig

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    # Kernel times of the 15B supernet, and the regression of its follow-up.
    "published": {"fa": 1.0, "swa": 0.16, "gdn": 0.09, "kda": 0.11},
    "published_regression": {"fa": 1.0, "swa": 0.48, "kda": 0.21, "gdn": 0.14},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CostTable:
    """Costs relative to full attention."""

    name: str
    per_mixer: Mapping[str, float]  # of one layer, over full attention's
    overheads: Mapping[str, float] = field(default_factory=dict)  # added once if the mixer is in use

    def __post_init__(self) -> None:
        if self.per_mixer.get(FULL_ATTENTION) != 1:
            raise UserError(
                f"costs {self.name}: fa costs {self.per_mixer.get(FULL_ATTENTION)}; it must be 1, the unit"
            )
        for mixer, cost in self.per_mixer.items():
            if not 0 <= cost < float("inf"):
                raise UserError(f"costs {self.name}: {mixer} costs {cost}; it must be 0 or more, and finite")
        self.require(self.overheads)
        if self.overheads.get(FULL_ATTENTION):
            raise UserError(f"costs {self.name}: fa cannot have an overhead, the all-FA model costs 1")
        for mixer, overhead in self.overheads.items():
            if not 0 <= overhead < float("inf"):
                raise UserError(f"costs {self.name}: overhead of {mixer} is {overhead}; it must be 0 or more")

    @property
    def mixers(self) -> tuple[str, ...]:
        return tuple(self.per_mixer)

    def require(self, mixers: Iterable[str]) -> None:
        """Check that these mixers have a cost.

        Raises:
            UserError: one has none; names it.
        """
        for mixer in mixers:
            if mixer not in self.per_mixer:
                raise UserError(
                    f"costs {self.name} have none for mixer {mixer!r}, only for {', '.join(self.per_mixer)}; "
                    "measure it (table: measured) or give one (table: given)"
                )

    def cost(self, what: Mapping[str, int] | Sequence[str]) -> float:
        """Return the cost of an allocation (layers of each mixer) or a placement, all-FA = 1.

        Raises:
            UserError: no layers, a negative count, or a mixer without a cost.
        """
        counts = dict(what) if isinstance(what, Mapping) else Counter(what)
        num_layers = sum(counts.values())
        if num_layers < 1 or min(counts.values()) < 0:
            raise UserError(f"counts {counts} are not an allocation; give one layer or more")
        self.require(counts)
        linear = sum(count * self.per_mixer[mixer] for mixer, count in counts.items()) / num_layers
        return linear + sum(self.overheads.get(mixer, 0.0) for mixer, count in counts.items() if count)


def published_costs(name: str) -> CostTable:
    """Return a published table by name.

    Raises:
        UserError: no such table.
    """
    if name not in PUBLISHED:
        raise UserError(
            f"no cost table {name!r}; choose {MEASURED}, {GIVEN} or a published one: {', '.join(PUBLISHED)}"
        )
    return CostTable(name=name, per_mixer=PUBLISHED[name])


def measured_costs(rows: Iterable[Mapping[str, object]]) -> CostTable:
    """Return the table of measured costs: a mixer's is the mean of `relative` over its points.

    Args:
        rows: of table `mixer_costs`, as dicts; full attention may be missing.

    Raises:
        UserError: mixers that were measured at different points cannot be compared.
    """
    relative: dict[str, dict[tuple, float]] = {}
    for row in rows:
        point = tuple(row[name] for name in ("phase", "context_tokens", "batch_size"))
        relative.setdefault(str(row["mixer"]), {})[point] = float(row["relative"])  # type: ignore[arg-type]
    if len({frozenset(points) for points in relative.values()}) > 1:
        raise UserError(
            f"mixers {', '.join(relative)} were not measured at the same points; measure them again"
        )
    means = {mixer: float(np.mean(list(points.values()))) for mixer, points in relative.items()}
    return CostTable(name=MEASURED, per_mixer={**means, FULL_ATTENTION: 1.0})


def resolve_costs(config: CostsConfig, rows: Iterable[Mapping[str, object]] = ()) -> CostTable:
    """Return the table that a recipe asks for.

    Args:
        config: names the table.
        rows: of table `mixer_costs`; used by the measured table only.

    Raises:
        UserError: no such table, or an overhead of a mixer that it lacks.
    """
    if config.table == MEASURED:
        table = measured_costs(rows)
    elif config.table == GIVEN:
        table = CostTable(name=GIVEN, per_mixer={FULL_ATTENTION: 1.0, **config.given})
    else:
        table = published_costs(config.table)
    return replace(table, overheads=config.overheads)


@dataclass(frozen=True, kw_only=True, slots=True)
class CostFit:
    """How well a cost model describes measured costs."""

    table: CostTable
    r2: float  # share of the variance over placements that it explains; NaN: measured costs do not vary
    worst_error: float  # largest |predicted - measured|, all-FA = 1


def fit_overheads(
    table: CostTable, placements: Sequence[Sequence[str]], measured: Sequence[float]
) -> CostFit:
    """Return the table with the overheads, none negative, that fit measured costs best in least squares.

    Args:
        table: costs per mixer; its own overheads are fitted anew.
        placements: what was measured.
        measured: cost of each, all-FA = 1.

    Raises:
        UserError: no placements, or not one cost for each.
    """
    table = replace(table, overheads={})
    used = [{mixer for mixer in placement if mixer != FULL_ATTENTION} for placement in placements]
    mixers = sorted(set().union(*used))
    target = _checked(placements, measured) - [table.cost(tuple(placement)) for placement in placements]
    uses = np.array([[mixer in names for mixer in mixers] for names in used], dtype=float)
    # Non-negative least squares: the optimum is the plain one on its own support. Types are few: try every support.
    best: tuple[float, dict[str, float]] = (float(target @ target), {})
    for size in range(1, len(mixers) + 1):
        for support in combinations(range(len(mixers)), size):
            solution, *_ = np.linalg.lstsq(uses[:, support], target, rcond=None)
            loss = float(np.square(uses[:, support] @ solution - target).sum())
            if solution.min() >= 0 and loss < best[0] - 1e-15:
                best = loss, {mixers[i]: float(value) for i, value in zip(support, solution, strict=True)}
    return evaluate_costs(replace(table, overheads=best[1]), placements, measured)


def evaluate_costs(
    table: CostTable, placements: Sequence[Sequence[str]], measured: Sequence[float]
) -> CostFit:
    """Return how well a table, overheads included, predicts measured costs.

    Raises:
        UserError: no placements, or not one cost for each.
    """
    actual = _checked(placements, measured)
    predicted = np.array([table.cost(tuple(placement)) for placement in placements])
    return CostFit(
        table=table, r2=r_squared(predicted, actual), worst_error=float(abs(predicted - actual).max())
    )


def r_squared(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Return 1 - residual / total sum of squares; NaN when the measured values are all the same."""
    total = float(np.square(measured - measured.mean()).sum())
    return 1 - float(np.square(predicted - measured).sum()) / total if total > 0 else float("nan")


def _checked(placements: Sequence[Sequence[str]], measured: Sequence[float]) -> np.ndarray:
    if not placements or len(placements) != len(measured):
        raise UserError(f"{len(measured)} measured costs for {len(placements)} placements; give one for each")
    return np.asarray(measured, dtype=float)
