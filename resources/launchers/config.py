"""The recipe's `execution` section: where steps run. It changes no result, so it is in no asset's slice."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

from apriel_assets.errors import UserError

INLINE, PROCESS, ACCELERATE, RAY = "inline", "process", "accelerate", "ray"
GPU_POOL = "gpu"  # of Dagster: how many steps with GPUs may be under way at once


@dataclass(frozen=True, kw_only=True)
class StepExecution:
    """How one step is run."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    launcher: Literal["inline", "process", "accelerate", "ray"] = INLINE
    gpus: int = 0  # leased for the step alone, by Ray under ray; 0: it sees what the program sees
    processes: int = 1  # of one build, under accelerate or ray; on all machines together
    machines: int = 1  # that share one build under accelerate, each with as many processes
    # Starts one process on each machine, e.g. [srun, --nodes=2, --ntasks-per-node=1]; GPUs are then its to give.
    machine_launcher: tuple[str, ...] = ()
    timeout_s: float | None = None  # of one attempt; None: no limit
    retries: int = 1  # after a transient failure: killed, or the device failed

    def __post_init__(self) -> None:
        for name, least in (("gpus", 0), ("processes", 1), ("machines", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise UserError(f"execution.{name}={getattr(self, name)} must be at least {least}")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise UserError(f"execution.timeout_s={self.timeout_s:g} must be positive, or null for no limit")
        if self.launcher == INLINE and (self.gpus or self.timeout_s):
            key = "gpus" if self.gpus else "timeout_s"
            raise UserError(
                f"execution.{key} needs launcher process, accelerate or ray: an inline step is the program itself"
            )
        if not self.is_distributed and self.processes > 1:
            raise UserError(f"execution.processes={self.processes} needs launcher accelerate or ray")
        if self.gpus and self.is_distributed and self.processes != self.gpus:
            raise UserError(
                f"execution.processes={self.processes} must equal gpus={self.gpus}: accelerate runs one process a GPU"
            )
        if (self.machines > 1) != bool(self.machine_launcher) or (
            self.machines > 1 and self.launcher != ACCELERATE
        ):
            raise UserError(
                f"execution.machines={self.machines} needs launcher accelerate and a machine_launcher, which needs "
                "several machines, e.g. [srun, --nodes=2, --ntasks-per-node=1]"
            )
        if self.processes % self.machines:
            raise UserError(
                f"execution.processes={self.processes} cannot be spread over machines={self.machines}; give a multiple"
            )

    @property
    def is_distributed(self) -> bool:
        """Whether several processes build together under accelerate."""
        return self.launcher == ACCELERATE or (self.launcher == RAY and self.processes > 1)


_KEYS = tuple(field.name for field in fields(StepExecution))


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig(StepExecution):
    """How steps are run, and which ones differently."""

    # Pattern of asset keys, or a group's name: what these steps do differently. Later patterns win.
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        StepExecution.__post_init__(self)
        for pattern, changes in self.steps.items():
            if unknown := [key for key in changes if key not in _KEYS]:
                raise UserError(
                    f"execution.steps.{pattern}.{unknown[0]} is not a key; keys here: {', '.join(_KEYS)}"
                )
            self._changed(self._defaults(), changes, pattern)

    def of(self, asset: str, group: str = "") -> StepExecution:
        """Return how the steps of one asset are run."""
        found = self._defaults()
        for pattern, changes in self.steps.items():
            if fnmatchcase(asset, pattern) or group == pattern:
                found = self._changed(found, changes, pattern)
        return found

    def pool_of(self, asset: str, group: str = "") -> str | None:
        """Return the Dagster pool that the steps of one asset take a slot in."""
        return GPU_POOL if self.of(asset, group).gpus else None

    def check_patterns(self, groups: Mapping[str, str]) -> None:
        """Check that every pattern matches an asset.

        Args:
            groups: group by asset key.

        Raises:
            UserError: one matches nothing, so it was probably meant for something else.
        """
        for pattern in self.steps:
            if not any(fnmatchcase(key, pattern) or group == pattern for key, group in groups.items()):
                raise UserError(
                    f"execution.steps.{pattern}: no asset or group of that name; {_names(groups)}"
                )

    def _defaults(self) -> StepExecution:
        return StepExecution(**{key: getattr(self, key) for key in _KEYS})

    @staticmethod
    def _changed(base: StepExecution, changes: Mapping[str, Any], pattern: str) -> StepExecution:
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(StepExecution).validate_python({**asdict(base), **changes})
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            raise UserError(f"execution.steps.{pattern}{'.' + where if where else ''}: {message}") from error


def _names(groups: Mapping[str, str]) -> str:
    keys: Iterable[str] = (*dict.fromkeys(groups.values()), *groups)
    return f"groups and assets: {', '.join(keys)}"
