"""What determines costs, allocations and the course of a search. No torch here: recipes import this."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from apriel_assets.errors import UserError

Phase = Literal["prefill", "decode"]
StrategyName = Literal["beam", "surrogate", "random", "exhaustive"]

MEASURED, GIVEN = "measured", "given"


@dataclass(frozen=True, kw_only=True, slots=True)
class CostPoint:
    """Where speed is measured: what the model does, at which length, for how many sequences at once."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    phase: Phase
    context: int  # tokens in the cache when decoding, or prompt length
    batch_size: int  # sequences at once


@dataclass(frozen=True, kw_only=True, slots=True)
class CostsConfig:
    """Where the mixers' costs come from: a measurement, a published table by name, or the recipe itself."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    table: str = MEASURED  # "measured", "given", "published" or "published_regression"
    given: dict[str, float] = field(default_factory=dict)  # cost of each mixer for table "given", fa = 1
    # Cost added once when a mixer type is in use, whatever the table, in units of the all-FA model.
    overheads: dict[str, float] = field(default_factory=dict)
    phase: Phase | Literal["both"] = "decode"
    contexts: tuple[int, ...] = (256, 1024)  # tokens
    batch_size: int = 16  # sequences at once
    repeats: int = 5  # times that a point is timed; the least counts
    decode_tokens: int = 8  # decode steps each time
    max_seconds_per_point: float = 30.0  # no further run starts after this; the first always does
    check_placements: int = 8  # random placements whose speed is compared with the prediction; 0: no check

    def __post_init__(self) -> None:
        if not self.contexts or list(self.contexts) != sorted(set(self.contexts)) or self.contexts[0] < 1:
            raise UserError(f"costs.contexts={list(self.contexts)} must be positive and strictly increasing")
        for name in ("batch_size", "repeats", "decode_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"costs.{name}={getattr(self, name)} must be at least 1")
        if self.check_placements < 0:
            raise UserError(f"costs.check_placements={self.check_placements} must be 0 (none) or more")
        if self.max_seconds_per_point <= 0:
            raise UserError(f"costs.max_seconds_per_point={self.max_seconds_per_point} must be positive")
        if (self.table == GIVEN) != bool(self.given):
            raise UserError(
                f"costs.table={self.table} with costs.given={self.given}; give costs of the mixers if and only "
                f"if the table is {GIVEN!r}"
            )

    @property
    def points(self) -> tuple[CostPoint, ...]:
        """Every phase at every context."""
        phases: tuple[Phase, ...] = ("prefill", "decode") if self.phase == "both" else (self.phase,)
        return tuple(
            CostPoint(phase=phase, context=context, batch_size=self.batch_size)
            for phase in phases
            for context in self.contexts
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AllocationConfig:
    """Which allocations a budget admits, besides their cost."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    slack: float | None = None  # an allocation costs at least budget - slack; None: no lower end
    minimum: dict[str, int] = field(default_factory=dict)  # least layers of a mixer
    maximum: dict[str, int] = field(default_factory=dict)  # most layers of a mixer
    pinned: dict[int, str] = field(default_factory=dict)  # layer, from 0: the mixer that it must have
    pareto: bool = True  # search only allocations that no other within the budget dominates

    def __post_init__(self) -> None:
        if self.slack is not None and self.slack < 0:
            raise UserError(f"slack={self.slack} must be 0 or more, or null for no lower end")
        for mixer in {*self.minimum, *self.maximum}:
            least, most = self.minimum.get(mixer, 0), self.maximum.get(mixer)
            if least < 0 or (most is not None and most < least):
                raise UserError(f"{mixer}: need 0 <= minimum <= maximum layers, got {least} and {most}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How placements are searched within a budget's allocations."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    strategy: StrategyName = "beam"
    max_candidates: int = 128  # distinct placements scored, starts included
    max_seconds: float | None = None  # no further round starts after this; makes the result depend on speed
    batch: int = 32  # candidates scored together; the larger, the more of their work is shared
    starts: int = 12  # placements that beam and surrogate begin with
    beam: int = 8  # beam: placements whose neighbours are tried next
    finalists: int = 4  # placements that the search hands on
    # Stop after this many rounds in a row without news; None: use up the candidates. News is a rise of the finalists'
    # mean value by more than `stability` of their intervals' mean half-width.
    patience: int | None = 3
    stability: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_candidates", "batch", "starts", "beam", "finalists", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"search.{name}={value} must be at least 1")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise UserError(f"search.max_seconds={self.max_seconds} must be positive, or null for no limit")
        if self.stability < 0:
            raise UserError(f"search.stability={self.stability} must be 0 or more")
