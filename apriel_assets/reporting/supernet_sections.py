"""The sections on what the search rests on and leads to: costs, the supernet, one checkpoint with several speeds."""

import math
from collections.abc import Sequence

from apriel_assets.reporting import cost_figures, supernet_figures
from apriel_assets.reporting.sections import Picture, Section, Table, shown
from apriel_assets.reporting.summary import Row, Tables, table_rows

_PUBLISHED_SHARING = "about 80%"  # of the 15B supernet's parameters, by its report


def costs_section(tables: Tables) -> Section:
    """What mixers cost, and whether the sum over layers is true."""
    costs, checked = table_rows(tables, "mixer_costs"), table_rows(tables, "cost_check")
    devices = ", ".join(sorted({row["device"] for row in [*costs, *checked] if row["device"]}))
    found = ""
    if checked:
        r2, worst = cost_figures.prediction_errors(checked)
        known = "not defined: all measured times are equal" if math.isnan(r2) else f"{r2:.3f}"
        found = f" R2: {known}. Worst error: {worst:.3f} of the all-FA model's time."
    return Section(
        title="Costs",
        lead="What a mixer costs against full attention" + (f", measured on {devices}." if devices else "."),
        pictures=[
            Picture(
                title="Cost of each mixer",
                svg=cost_figures.mixer_costs(costs),
                caption="Shorter is cheaper; left of the dotted line, cheaper than full attention. Filled: measured."
                " Outlined: what the bytes (decode) or operations (prefill) alone would allow.",
            ),
            Picture(
                title="Predicted against measured time",
                svg=cost_figures.predicted_against_measured(checked),
                caption="A point per timed placement of the whole model: on the dotted line, the cost model is right;"
                " above it, the model is slower than predicted." + found,
            ),
        ],
        tables=[],
        sources=("mixer_costs", "cost_check"),
    )


def supernet_section(tables: Tables) -> Section:
    """How the supernet's mixers came along."""
    curves = table_rows(tables, "supernet_curves")
    names = supernet_names(tables)
    training = [row for row in table_rows(tables, "training") if row["model"] in names]
    return Section(
        title="Supernet",
        lead="Every layer holds several mixers, trained together: each step distils one random placement.",
        pictures=[
            Picture(
                title="KL of fixed placements",
                svg=supernet_figures.probe_curves(curves),
                caption="Lower is closer to the teacher. One mixer in every layer, in its colour, and random mixtures,"
                " dashed: a line that stays high while the others fall is a mixer that starves.",
            ),
            Picture(
                title="Output error by mixer",
                svg=supernet_figures.output_errors(curves),
                caption="How far each mixer's output is from full attention's on the same input, mean over layers:"
                " 0 is the same, 1 is as bad as no output at all.",
            ),
            Picture(
                title="Training loss",
                svg=supernet_figures.sampled_loss(training),
                caption="Every step has another placement, so single steps (faint) jump; the trend is what counts.",
            ),
        ],
        tables=[_probe_table(curves)],
        sources=("supernet_curves",),
    )


def matryoshka_section(tables: Tables) -> Section:
    """What the released placements share."""
    # Two checkpoints hold the same placements, before and after the last training: what they share is the same.
    figures = ("placement", "parameters", "added_bytes")
    rows = list({tuple(row[name] for name in figures): row for row in table_rows(tables, "sharing")}.values())
    shares = list(dict.fromkeys(f"{row['shared_share']:.1%}" for row in rows))
    return Section(
        title="One checkpoint, several speeds",
        lead=f"Of the checkpoint's parameters, {' or '.join(shares)} are used by every placement; published for the"
        f" 15B supernet: {_PUBLISHED_SHARING}.",
        pictures=[],
        tables=[
            Table(
                title="Sharing",
                headings=("placement", "parameters that it runs", "share of all", "bytes that only it needs"),
                rows=[
                    (
                        row["placement"],
                        f"{row['parameters']:,}",
                        f"{row['parameters'] / row['total_parameters']:.1%}",
                        f"{row['added_bytes']:,}",
                    )
                    for row in rows
                ],
                note="What several placements need is stored once. Bytes that only it needs: what the checkpoint would"
                " shrink by without this placement.",
            )
        ],
        sources=("sharing",),
    )


def supernet_names(tables: Tables) -> set[str]:
    """Return the models whose training samples placements."""
    kinds = {row["model"] for row in table_rows(tables, "checkpoints") if row["kind"] == "supernet"}
    return kinds | {row["model"] for row in table_rows(tables, "supernet_curves")}


def _probe_table(curves: Sequence[Row]) -> Table:
    rows = []
    for probe in dict.fromkeys(row["probe"] for row in curves):
        own = sorted((row for row in curves if row["probe"] == probe), key=lambda row: row["step"])
        first, last = own[0], own[-1]
        name = "kl_nats" if last["kl_nats"] is not None else "output_error"
        what = "KL, nats per token" if name == "kl_nats" else "output error"
        rows.append((probe, what, shown(first[name], ".4g"), shown(last[name], ".4g")))
    steps = [row["step"] for row in curves]
    return Table(
        title="Probes at the first and the last step",
        headings=("probe", "quantity", f"step {min(steps)}", f"step {max(steps)}") if steps else (),
        rows=rows,
        note="On one fixed held-out batch.",
    )
