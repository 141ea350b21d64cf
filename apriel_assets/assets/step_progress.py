"""How far a running step is, where people look: a line in its log, and observations of its asset with a curve."""

import time
from collections.abc import Callable
from typing import Any

import dagster as dg

from apriel_assets.assets.asset_plan import AssetPlan
from apriel_assets.progress import Progress
from resources import listeners

_EVERY_S = 20.0
_EVERY_SHARE = (
    0.02  # of the time so far: a step of a week leaves hundreds of observations, not tens of thousands
)
_MOST_POINTS = 400


def step_progress(
    plan: AssetPlan,
    partition: str | None,
    context: dg.AssetExecutionContext,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Return what a builder reports its progress to."""
    tell = listeners.reporter(plan.key + (f"[{partition}]" if partition else ""), context.log)
    started = last = clock()
    curves: dict[str, list[float]] = {}

    def report(done: int, total: int, **figures: float) -> None:
        nonlocal last
        tell(done, total, **figures)
        for name, value in figures.items():
            _append(curves.setdefault(name, []), value)
        now = clock()
        if now - last >= max(_EVERY_S, _EVERY_SHARE * (now - started)):
            last = now
            shown = _metadata(done, total, now - started, figures, curves)
            context.log_event(
                dg.AssetObservation(
                    asset_key=dg.AssetKey(plan.key.split("/")), partition=partition, metadata=shown
                )
            )

    return report


def _append(curve: list[float], value: float) -> None:
    curve.append(value)
    if len(curve) > _MOST_POINTS:  # thinned from the start on: the shape stays, memory does not grow
        curve[:] = [(one + other) / 2 for one, other in zip(curve[::2], curve[1::2], strict=False)]


def _metadata(
    done: int, total: int, seconds: float, figures: dict[str, float], curves: dict[str, list[float]]
) -> dict[str, Any]:
    from apriel_assets.assets.shown import shown_value
    from apriel_assets.reporting.sparklines import markdown_sparkline

    shown: dict[str, Any] = {"done": done, "total": total, "seconds": round(seconds, 1)}
    if 0 < done <= total:
        shown["expected_seconds_left"] = round(seconds * (total - done) / done, 1)
    shown |= {name: shown_value(float(value)) for name, value in figures.items()}
    for name, curve in (("loss_nats", "loss_curve"), ("reward", "reward_curve"), ("kl_nats", "kl_curve")):
        if len(curves.get(name, ())) > 1:
            shown[curve] = dg.MetadataValue.md(markdown_sparkline(curves[name]))
    return shown
