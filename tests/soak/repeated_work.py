"""What killed lives did more than once, by what their journals say."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.lives import Life


@dataclass
class Repeated:
    """Training steps that were done more than once in a round, and what is wrong with that."""

    steps: int = 0
    most_per_kill: float = 0.0
    problems: list[str] = field(default_factory=list)


def repeated_work(recipe: Path, lives: Sequence[Life], undisturbed: Sequence[Life]) -> Repeated:
    """Compare what trainings reported with the undisturbed run: at most one interval more per kill in them."""
    from apriel_assets.recipe import load_recipe

    interval = max(_save_intervals(load_recipe(str(recipe)).model_dump()))
    trained = {
        own["asset"]
        for life in undisturbed
        for own in life.events
        if own["event"] == "begin" and _trains(own["asset"])
    }
    done, once, found = work_done(lives), work_done(undisturbed), Repeated()
    for asset in sorted(trained):
        more = sum(count - once[unit] for unit, count in done.items() if unit[0] == asset)
        kills = sum(_was_building(life, asset) for life in lives if life.end != "none")
        found.steps += more
        if kills:
            found.most_per_kill = max(found.most_per_kill, more / kills)
        if not 0 <= more <= kills * interval:
            found.problems.append(f"{asset}: {more} steps more than once, {kills} kills, interval {interval}")
        if {unit for unit in once if unit[0] == asset} - set(done):
            found.problems.append(f"{asset}: steps of the undisturbed run are missing")
    return found


def work_done(lives: Sequence[Life]) -> Counter:
    """Return how often each unit of progress was reported, by (step, done of all)."""
    return Counter(
        (own["step"], own["done"], own["total"])
        for life in lives
        for own in life.events
        if own["event"] == "progress"
    )


def _trains(asset: str) -> bool:
    return asset in ("supernet", "h1/sft", "release/sft") or (
        asset.startswith("h1/h") and asset.count("/") == 1
    )


def _was_building(life: Life, asset: str) -> bool:
    own = [event for event in life.events if event.get("asset") == asset]
    return bool(own) and own[-1]["event"] == "begin"


def _save_intervals(values: Any) -> list[int]:
    if not isinstance(values, dict):
        return []
    own = [values["save_every"]] if "save_every" in values else []
    return own + [number for value in values.values() for number in _save_intervals(value)]
