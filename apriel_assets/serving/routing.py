"""Which placement answers a request that names none: by task, by context length, by how fast it must be.

Placements are tried from the best answers to the fastest. A rule can only move a request on to a faster one, but for a
task's own placement, which was chosen by who wrote the policy.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from apriel_assets.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingPolicy:
    """What the operator decides; a YAML file."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    tasks: Mapping[str, str] = field(default_factory=dict)  # placement by task tag
    # Most tokens, prompt and completion, that a placement is given; one that is not named takes any number.
    most_context_tokens: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bad := [name for name, most in self.most_context_tokens.items() if most < 1]:
            raise UserError(f"most_context_tokens.{bad[0]} must be at least 1")

    def check(self, placements: Collection[str]) -> None:
        """Check that only these placements are named.

        Raises:
            UserError: another one.
        """
        named = (*self.tasks.values(), *self.most_context_tokens)
        if unknown := [name for name in named if name not in placements]:
            raise UserError(
                f"the policy names placement {unknown[0]!r}; the release has {', '.join(placements)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a request says about itself."""

    num_tokens: int  # prompt and completion
    latency_ms_per_token: float | None = None
    task: str | None = None


def choose_placement(
    wanted: Wanted,
    policy: RoutingPolicy,
    order: Sequence[str],
    *,
    ready: Collection[str],
    ms_per_token: Mapping[str, float],
) -> str | None:
    """Return the placement for a request, or None if none is ready.

    Args:
        wanted: the request.
        policy: the operator's rules.
        order: placements, best answers first.
        ready: those that can answer now.
        ms_per_token: what each takes, measured; one that was not measured is not taken for a latency target.

    Raises:
        UserError: a task that the policy does not know.
    """
    if wanted.task is not None and wanted.task not in policy.tasks:
        known = ", ".join(policy.tasks) or "none"
        raise UserError(f"policy.task {wanted.task!r} is not known here; known: {known}")
    candidates = [name for name in order if name in ready]
    if wanted.task is not None and policy.tasks[wanted.task] in candidates:
        return policy.tasks[wanted.task]
    fitting = [
        name
        for name in candidates
        if name not in policy.most_context_tokens or wanted.num_tokens <= policy.most_context_tokens[name]
    ]
    candidates = fitting or candidates[-1:]
    if wanted.latency_ms_per_token is None or not candidates:
        return next(iter(candidates), None)
    measured = [name for name in candidates if name in ms_per_token]
    if not measured:
        return candidates[-1]
    quick = [name for name in measured if ms_per_token[name] <= wanted.latency_ms_per_token]
    return quick[0] if quick else min(measured, key=lambda name: ms_per_token[name])


def expected_ms_per_token(rows: Sequence[Mapping[str, Any]], num_tokens: int) -> float | None:
    """Return what `throughput` rows say of one sequence's decode step at the nearest context that is not shorter."""
    decode = sorted((row for row in rows if row["phase"] == "decode"), key=lambda row: row["context_tokens"])
    if not decode:
        return None
    row = next((row for row in decode if row["context_tokens"] >= num_tokens), decode[-1])
    return 1000 * row["batch_size"] / row["tokens_per_s"]
