"""What a step's own process is told, and what it hands back: JSON files in one directory beside the work directory."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from resources.atomic import write_json

ORDER, RECIPE = "order.json", "recipe.yaml"


@dataclass(frozen=True, kw_only=True)
class StepOrder:
    """One artifact to build: all that another process needs to build the same one."""

    asset: str
    partition: str | None
    address: str
    code_version: str
    home: str
    draft: str  # directory of the payload and the tables
    inputs: tuple[tuple[str, str | None, str], ...]  # asset, partition, address

    @property
    def step(self) -> str:
        """The step's name as logs show it."""
        return self.asset + (f"[{self.partition}]" if self.partition else "")

    @property
    def directory(self) -> Path:
        """Where the order and its outcomes lie while the step runs."""
        return Path(self.home) / "work" / self.asset / f"{self.address}.step"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one process of a step ended; `running` stays if it was killed."""

    state: str  # running, done, failed
    error: str = ""  # one line
    user_error: bool = False  # the error is the user's to mend, not ours
    transient: bool = False  # another attempt may succeed
    traceback: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    data_version: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)  # where it was made, for the provenance


@contextlib.contextmanager
def placed(order: StepOrder, recipe: Mapping[str, Any]) -> Iterator[Path]:
    """Write the order and the resolved recipe; yield the order's file. All is removed after."""
    shutil.rmtree(order.directory, ignore_errors=True)
    order.directory.mkdir(parents=True)
    try:
        (order.directory / RECIPE).write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
        write_json(order.directory / ORDER, asdict(order))
        yield order.directory / ORDER
    finally:
        shutil.rmtree(order.directory, ignore_errors=True)


def read_order(file: Path) -> StepOrder:
    """Return the order in a file."""
    content = json.loads(file.read_text())
    return StepOrder(**{**content, "inputs": tuple(tuple(given) for given in content["inputs"])})


def write_outcome(order: StepOrder, rank: int, outcome: Outcome) -> None:
    """Say how process `rank` of the step is doing."""
    write_json(order.directory / f"outcome-{rank}.json", asdict(outcome))


def read_outcomes(order: StepOrder) -> list[Outcome]:
    """Return the outcomes of all processes that started, first process first."""
    files = sorted(order.directory.glob("outcome-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [Outcome(**json.loads(path.read_text())) for path in files]


def forget_outcomes(order: StepOrder) -> None:
    """Remove what an earlier attempt left: outcomes, and whatever is in the draft."""
    for path in order.directory.glob("outcome-*.json"):
        path.unlink()
    for path in Path(order.draft).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
