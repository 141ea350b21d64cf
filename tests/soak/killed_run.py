"""`apriel run` as the kill driver starts it: the very command, which also writes down what it begins and how far it is.

Its journal is a file of JSON lines, each written with one system call, so that SIGKILL loses none of them.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PRELOADED = [
    "apriel_assets.cli",
    "apriel_assets.workspace",
    "apriel_assets.terminal",
    "apriel_assets.distillation.trainer",
    "apriel_assets.distillation.supernet",
    "apriel_assets.evaluation.generation",
    "apriel_assets.hybrid.matryoshka",
    "apriel_assets.reporting.report",
    "apriel_assets.scoring.placements",
    "apriel_assets.scoring.probes",
    "transformers.models.llama.modeling_llama",
    "dagster",
]
"""Modules that a forked run need not import again."""


class Journal:
    """What one life of a run did, in order."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, "clock_s": round(time.monotonic(), 3), **facts})
        os.write(self._handle, f"{line}\n".encode())

    def progress(self, step: str, done: int, total: int, figures: dict[str, float]) -> None:
        self.write("progress", step=step, done=done, total=total)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the events of a life, also of one that was killed, or that is writing just now."""
    *whole, _rest = path.read_text().split("\n") if path.exists() else [""]
    return [json.loads(line) for line in whole]


def live(arguments: list[str], journal: Path, output: Path, *, records_syncs: bool) -> None:
    """Run the command in this process until it ends or is killed.

    Args:
        arguments: of `apriel`.
        journal: what is done goes there.
        output: stdout and stderr go there.
        records_syncs: write down what is flushed to the disk, too, for a power loss afterwards.
    """
    own = Journal(journal)
    with output.open("ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    import torch

    torch.set_num_threads(1)
    from apriel_assets import cli
    from resources import listeners

    sys.argv = ["apriel", *arguments]
    with contextlib.ExitStack() as stack:
        stack.enter_context(builds_told(own))
        stack.enter_context(listeners.listening(own.progress))
        if records_syncs:
            from tests.soak.power_loss import syncs_told

            stack.enter_context(syncs_told(own.write))
        own.write("start")
        cli.main()


@contextlib.contextmanager
def builds_told(journal: Journal) -> Iterator[None]:
    """Write down which artifacts this process begins and finishes."""
    from resources.artifact_store import ArtifactStore

    create = ArtifactStore.create

    @contextlib.contextmanager
    def told(self: Any, asset: str, address: str, provenance: Any) -> Iterator[Any]:
        facts = {"asset": asset, "address": address, "partition": provenance.get("partition")}
        journal.write("begin", **facts)
        with create(self, asset, address, provenance) as draft:
            yield draft
        journal.write("end", **facts)

    ArtifactStore.create = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        ArtifactStore.create = create  # type: ignore[method-assign]


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    live(
        chosen["arguments"],
        Path(chosen["journal"]),
        Path(chosen["output"]),
        records_syncs=chosen["records_syncs"],
    )
