"""The page's section on rankings: do probes agree with leave-one-out?"""

from collections.abc import Sequence

import numpy as np

from apriel_assets.reporting.sections import Section, Table, shown
from apriel_assets.reporting.summary import Row, Tables, table_rows


def layers_section(tables: Tables) -> Section:
    """Leave-one-out and probe rankings against each other, on the layers that both rank."""
    scores = {row["layer"]: row["importance"] for row in table_rows(tables, "layer_scores")}
    probes = table_rows(tables, "probes")
    steps = sorted({row["step"] for row in probes}, key=lambda step: (len(step), step))
    rows = [_agreement(step, [row for row in probes if row["step"] == step], scores) for step in steps]
    return Section(
        title="Rankings",
        lead="Leave-one-out asks what is lost without a layer's attention; a probe, what is lost after a short training"
        " of its replacement, with all earlier ones in place.",
        pictures=[],
        tables=[
            Table(
                title="Probes against leave-one-out",
                headings=("probes for", "layers", "Spearman", "easiest by probe", "its place by leave-one-out",
                          "moved most"),
                rows=[row for row in rows if row],
                note="Spearman: rank correlation over the layers probed, 1 is the same order. Places count these layers"
                " alone, 1 = easiest. Moved most: the layer whose two places differ most.",
            )
        ],
        sources=("layer_scores", "probes"),
    )  # fmt: skip


def _agreement(step: str, probed: Sequence[Row], scores: dict[int, float]) -> tuple[str, ...]:
    rows = [row for row in probed if row["layer"] in scores]
    if len(rows) < 2:
        return ()
    layers = [row["layer"] for row in rows]
    by_probe, by_score = (
        _ranks([row["loss_nats"] for row in rows]),
        _ranks([scores[layer] for layer in layers]),
    )
    easiest, moved = int(by_probe.argmin()), int(np.abs(by_probe - by_score).argmax())
    return (
        step,
        str(len(rows)),
        shown(float(np.corrcoef(by_probe, by_score)[0, 1]), "+.2f"),
        f"layer {layers[easiest]}",
        f"{by_score[easiest] + 1} of {len(rows)}",
        f"layer {layers[moved]}: {by_score[moved] + 1} to {by_probe[moved] + 1}",
    )


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Return each value's place, 0 = least; of equal ones the first goes first."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")
