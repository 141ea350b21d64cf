"""The page's sections on speed: what was measured at every point, and what limits it here and elsewhere."""

from collections import Counter
from collections.abc import Sequence

from apriel_assets.reporting import roofline_figures
from apriel_assets.reporting.sections import ABSENT, Picture, Section, Table, shown
from apriel_assets.reporting.summary import Row, Tables, leaderboard_table, table_rows
from apriel_assets.tables.published import published_rows
from apriel_assets.tables.schemas import to_table

_NOT_RUN = ("supernet", "matryoshka")
_MIB = 2**20


def speed_section(tables: Tables) -> Section:
    """Every timed point with its latency, memory and share of what the device allows."""
    order = {row["model"]: place for place, row in enumerate(leaderboard_table(tables).to_pylist())}
    rows = sorted(
        table_rows(tables, "throughput"),
        key=lambda row: (
            row["phase"],
            row["context_tokens"],
            row["batch_size"],
            order.get(row["model"], len(order)),
        ),
    )
    devices = ", ".join(sorted({row["device"] for row in rows if row["device"]}))
    return Section(
        title="Measured speed",
        lead=f"Every timed point, on {devices or 'this device'}.",
        pictures=[],
        tables=[
            Table(
                title="Throughput and latency",
                headings=("model", "phase", "context", "batch", "tokens/s", "of bound", "p50 ms", "p95 ms",
                          "cache bytes a token", "peak MiB", "decoder"),
                rows=[_speed_row(row) for row in rows],
                note="Median over repeats. Latency: prompt to first token, or one further token. Of bound: share of"
                " what the device's measured copy and matmul rates allow by the byte model; what fits into a CPU's"
                " caches can beat it. Peak: on a CPU the whole process.",
            )
        ],
        sources=("throughput",),
    )  # fmt: skip


def roofline_section(tables: Tables) -> Section:
    """What decoding moves, on which device that is the limit, and which levers there are."""
    devices, levers = table_rows(tables, "devices"), table_rows(tables, "levers")
    batch = levers[0]["batch_size"] if levers else 1
    order = [row["model"] for row in leaderboard_table(tables).to_pylist()]
    found = modelled_steps(table_rows(tables, "checkpoints"), table_rows(tables, "layer_bytes"), batch)
    steps = {model: found[model] for model in order if model in found}
    published = to_table("published", published_rows()).to_pylist() if devices else []
    by_context = f" Batch {batch}; by the byte model, nothing measured."
    return Section(
        title="Roofline",
        lead="Decode rereads weights and caches for every token, so bytes over bandwidth is the least time of a step.",
        pictures=[
            Picture(
                title="Rooflines",
                svg=roofline_figures.rooflines(devices),
                caption="Left of its ridge point a device is limited by bandwidth, right of it by compute. Attention in"
                " decode stands far to the left on every device: only fewer bytes make it faster.",
            ),
            Picture(
                title="Levers on the bytes",
                svg=roofline_figures.levers(levers),
                caption="What each would gain alone, over the all-FA teacher." + by_context,
            ),
            Picture(
                title="Modelled speed-up by context",
                svg=roofline_figures.modelled_by_context(
                    steps, "speedup", "decode speed-up over the teacher"
                ),
                caption="Every model's placement." + by_context,
            ),
            Picture(
                title="Bytes per token by context",
                svg=roofline_figures.modelled_by_context(
                    steps, "bytes_per_token", "MB per decoded token", 1e6
                ),
                caption="Weights, shared by the batch, and the sequence's own caches." + by_context,
            ),
            Picture(
                title="Published speed-ups against their limit",
                svg=roofline_figures.published_speeds(published),
                caption="Where a step read nothing but KV caches, all layers over those with full attention would be"
                " the speed-up. Points above the line gained elsewhere, too (sparse experts, other baselines).",
            ),
        ],
        tables=[_device_table(devices)],
        sources=("devices", "layer_bytes", "levers", "checkpoints"),
    )


def modelled_steps(
    checkpoints: Sequence[Row], layer_bytes: Sequence[Row], batch: int
) -> dict[str, list[Row]]:
    """Return, by model, what a decode step moves at each context: bytes per token, speed-up over the teacher.

    Args:
        checkpoints: rows of that table.
        layer_bytes: rows of that table.
        batch: sequences at once.
    """
    layers = {(row["mixer"], row["context_tokens"]): row for row in layer_bytes}
    contexts = sorted({row["context_tokens"] for row in layer_bytes})
    found: dict[str, list[Row]] = {}
    for checkpoint in checkpoints:
        counts = Counter(checkpoint["placement"])
        if checkpoint["kind"] in _NOT_RUN or any(
            (mixer, c) not in layers for mixer in counts for c in contexts
        ):
            continue
        found[checkpoint["model"]] = [
            {
                "context_tokens": context,
                "bytes_per_token": _step_bytes(counts, layers, context, batch) / batch,
            }
            for context in contexts
        ]
    if "teacher" not in found:
        return {}
    for rows in found.values():
        for own, base in zip(rows, found["teacher"], strict=True):
            own["speedup"] = base["bytes_per_token"] / own["bytes_per_token"]
    return found if contexts else {}


def _step_bytes(counts: Counter[str], layers: dict[tuple[str, int], Row], context: int, batch: int) -> float:
    rows = {mixer: layers[mixer, context] for mixer in counts}
    head = next(iter(rows.values()))["head_weight_bytes"]
    return head + sum(
        count * (rows[mixer]["weight_bytes"] + batch * rows[mixer]["moved_bytes"])
        for mixer, count in counts.items()
    )


def _speed_row(row: Row) -> tuple[str, ...]:
    bound, peak = row["bound_tokens_per_s"], row["peak_memory_bytes"]
    return (
        row["model"],
        row["phase"],
        f"{row['context_tokens']:,}",
        str(row["batch_size"]),
        shown(row["tokens_per_s"], ",.0f"),
        shown(row["tokens_per_s"] / bound if bound else None, ".0%"),
        shown(_milliseconds(row["latency_p50_seconds"]), ",.2f"),
        shown(_milliseconds(row["latency_p95_seconds"]), ",.2f"),
        shown(row["cache_bytes_per_token"], ",.0f"),
        shown(peak / _MIB if peak else None, ",.0f"),
        row["decoder"] or ABSENT,
    )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _device_table(devices: Sequence[Row]) -> Table:
    return Table(
        title="Devices",
        headings=("device", "from", "TFLOP/s", "GB/s", "ridge, FLOP/byte", "attention in decode, FLOP/byte"),
        rows=[
            (
                row["device"],
                row["source"],
                _rate(row["flops_per_s"] / 1e12),
                _rate(row["bytes_per_s"] / 1e9),
                f"{row['ridge_flops_per_byte']:.0f}",
                f"{row['kv_read_intensity']:g}",
            )
            for row in devices
        ],
        note="Measured: a large copy, and a large matrix product in the model's dtype. Datasheet: dense bf16.",
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
