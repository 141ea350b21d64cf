"""Recipe keys of what ships. No torch here: recipes import this."""

from dataclasses import dataclass
from typing import ClassVar

from apriel_assets.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculativeConfig:
    """How speculative decoding is measured: every released placement drafts for the checkpoint's full attention."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    draft_tokens: int = 4  # drafted before each pass of full attention
    num_problems: int = 8  # held-out problems, over all tasks
    max_new_tokens: int = 56
    temperature: float = 0.0  # 0: greedy

    def __post_init__(self) -> None:
        for name in ("draft_tokens", "num_problems", "max_new_tokens"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"release.speculative.{name}={value} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"release.speculative.temperature={self.temperature} must be 0 (greedy) or positive"
            )
