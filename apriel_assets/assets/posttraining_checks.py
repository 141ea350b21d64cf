"""What must hold of further training: the safe default is no worse for it, and rewards are numbers that rise."""

import math
from typing import Any

from apriel_assets.assets.asset_plan import Check, Verdict
from apriel_assets.evaluation.comparison import OVERALL
from apriel_assets.hybrid.placement import SAFE
from resources.artifact_store import Artifact


def _safe(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    rows = artifact.table("before_after").to_pylist()
    row = next(row for row in rows if (row["placement"], row["task"]) == (SAFE, OVERALL))
    names = (
        "before",
        "after",
        "num_problems",
        "num_differing",
        "p_value",
        "could_hide",
        "max_logit_difference",
    )
    shown: dict[str, Any] = {name: row[name] for name in names}
    shown["change"] = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
    if row["max_logit_difference"] == 0:
        shown["note"] = (
            "what trained is not part of full attention: its logits are what they were, bit for bit"
        )
    return row["changed"] != "worse", shown


def _finite(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    rows = artifact.table("rl_training").to_pylist()
    bad = [
        row["step"] for row in rows if not math.isfinite(row["loss"] or 0) or not math.isfinite(row["reward"])
    ]
    return bool(rows) and not bad, {"num_steps": len(rows), "num_not_finite": len(bad)}


def _reward_rises(artifact: Artifact, before: Artifact | None = None) -> Verdict:
    rows = artifact.table("rl_training").to_pylist()
    if all(row["loss"] is None for row in rows):
        return False, {
            "note": "every group had one reward throughout, so nothing was learned: take other problems"
        }
    shown: dict[str, Any] = {}
    for name in dict.fromkeys(row["placement"] for row in rows):
        rewards = [row["reward"] for row in rows if row["placement"] == name]
        share = max(1, len(rewards) // 4)
        if len(rewards) > 1:
            shown |= {
                f"{name}_first_quarter": sum(rewards[:share]) / share,
                f"{name}_last_quarter": sum(rewards[-share:]) / share,
            }
    if not shown:
        return None, {"note": "no placement was trained in two steps"}
    names = {own.removesuffix("_first_quarter") for own in shown if own.endswith("_first_quarter")}
    risen = [shown[f"{name}_last_quarter"] > shown[f"{name}_first_quarter"] for name in names]
    return all(risen), shown


SAFE_CHECK = Check(
    name="safe_is_no_worse",
    description="Full attention answers held-out problems no worse than before: not beyond the 95% interval of the "
    "paired difference, with a sign-flip test that agrees. What trained only other mixers cannot change it.",
    passes=_safe,
    blocking=True,
)
RL_FINITE_CHECK = Check(
    name="rl_is_finite",
    description="Every step's reward and loss is a number.",
    passes=_finite,
    blocking=True,
)
REWARD_RISES_CHECK = Check(
    name="reward_rises",
    description="Each trained placement's reward is higher in the last quarter of its steps than in the first.",
    passes=_reward_rises,
)
