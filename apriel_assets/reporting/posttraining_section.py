"""The page's section on further training of the release: rewards by step, and every placement before and after."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from apriel_assets.evaluation.comparison import OVERALL
from apriel_assets.reporting.drawing import new_figure, picture
from apriel_assets.reporting.figures import Rows
from apriel_assets.reporting.sections import Picture, Section, Table, interval, shown
from apriel_assets.reporting.summary import Row, Tables, table_rows

_STAGES = {"sft": "fine-tuning (SFT)", "rl": "reinforcement learning (GRPO)"}
_MEANS = 15  # points of a reward's curve: a step's reward is that of a few problems, and jumps


def posttraining_section(tables: Tables) -> Section:
    """What SFT and RL did to each released placement, on held-out problems."""
    compared, steps = table_rows(tables, "before_after"), table_rows(tables, "rl_training")
    groups, skipped = (sum(row[name] for row in steps) for name in ("num_groups", "num_skipped_groups"))
    learned = f" {skipped} of {groups} groups had one reward throughout and taught nothing." if groups else ""
    return Section(
        title="Further training",
        lead="The released placements before and after each further training, asked the same held-out problems."
        " A release of which full attention got worse is not exported.",
        pictures=[
            Picture(
                title="Reward by step",
                svg=reward_curves(steps),
                caption="Share of right completions when sampled, each placement's steps in groups of neighbours."
                + learned,
            ),
            Picture(
                title="Distance from the start by step",
                svg=kl_curves(steps),
                caption="Estimate of KL(policy || start) per sampled token. A curve that runs away has left what the"
                " start knew.",
            ),
        ],
        tables=[_table(stage, [row for row in compared if row["stage"] == stage]) for stage in _STAGES],
        sources=("before_after", "rl_training"),
    )


@picture
def reward_curves(steps: Rows) -> Figure | None:
    """Draw each placement's mean reward over its steps."""
    return _curves(steps, "reward", "reward, share right")


@picture
def kl_curves(steps: Rows) -> Figure | None:
    """Draw how far each placement's policy is from where it started."""
    return _curves(steps, "kl_nats", "KL, nats per token")


def _curves(steps: Rows, column: str, label: str) -> Figure | None:
    known = sorted((row for row in steps if row[column] is not None), key=lambda row: row["step"])
    if not known:
        return None
    figure, (axes,) = new_figure(3.0)
    for name in sorted({row["placement"] for row in known}):
        own = [row for row in known if row["placement"] == name]
        span = max(1, len(own) // _MEANS)
        parts = [own[start : start + span] for start in range(0, len(own), span)]
        x, y = ([sum(row[key] for row in part) / len(part) for part in parts] for key in ("step", column))
        axes.plot(x, y, ".-", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.legend()
    return figure


def _table(stage: str, rows: Sequence[Row]) -> Table:
    ordered = sorted(
        rows, key=lambda row: (row["placement"] != "safe", row["placement"], row["task"] != OVERALL)
    )
    return Table(
        title=f"Before and after {_STAGES[stage]}",
        headings=("placement", "task", "problems", "before", "after", "difference (95%)", "told apart"),
        rows=[
            (
                row["placement"],
                row["task"],
                str(row["num_problems"]),
                shown(row["before"]),
                shown(row["after"]),
                interval(row["difference"], row["low"], row["high"], "+.3f"),
                _verdict(row),
            )
            for row in ordered
        ],
        note="Greedy answers, paired by problem; safe is full attention. Told apart: the interval leaves out zero and a"
        " sign-flip test agrees; else how large a difference may still hide.",
    )


def _verdict(row: Row) -> str:
    if row["max_logit_difference"] == 0:
        return "the same bit for bit"
    if row["changed"] == "none":
        return f"no; up to {shown(row['could_hide'], '.2g')} may hide"
    return row["changed"]
