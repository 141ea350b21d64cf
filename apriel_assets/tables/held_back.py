"""Which further trainings of a release their guard holds back: the safe default answers fewer problems than before."""

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def not_held_back(checkpoints: Iterable[Row], before_after: Iterable[Row]) -> list[Row]:
    """Return the rows of `checkpoints` but for those of a release that its guard holds back, in their order.

    Args:
        checkpoints: rows of that table.
        before_after: rows of that table. As a builder reads them neither has a recipe: all are of one.
    """
    refused = {
        (row.get("recipe"), f"artifacts/release/{row['stage']}/")
        for row in before_after
        if (row["placement"], row["task"], row["changed"]) == ("safe", "all tasks", "worse")
    }
    return [
        row
        for row in checkpoints
        if not any(
            row.get("recipe") == recipe and (row["path"] or "").startswith(directory)
            for recipe, directory in refused
        )
    ]
