"""The recipe's `automation` section: what runs without a person. It changes no result, so it is in no asset's slice."""

from pydantic import Field

from apriel_assets.recipe_sections import Section


class WatchSection(Section):
    """A directory that others put checkpoints into; each is evaluated once."""

    directory: str = Field(min_length=1)
    interval_s: int = Field(default=30, ge=1)  # between two looks
    settle_s: float = Field(
        default=30, ge=0
    )  # a checkpoint is complete when nothing of it changed for so long


class GenerationSection(Section):
    """Real generation where placements' scores cannot be trusted."""

    candidates: int = Field(default=16, gt=0)  # of each budget, best scores first
    interval_s: int = Field(default=60, ge=1)  # between two looks


class AutomationSection(Section):
    """Which sensors run, how often, and how often they try again."""

    reconcile: bool = False  # rebuild what is stale, as `apriel run` does
    interval_s: int = Field(default=30, ge=1)  # between two looks of the reconcile sensor
    retries: int = Field(default=2, ge=0)  # of a run that failed, unless the input was at fault
    retry_wait_s: float = Field(default=60, ge=0)  # before the first retry; doubles with each further one
    watch: WatchSection | None = None
    generation: GenerationSection | None = None
