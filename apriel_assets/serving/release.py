"""A release on disk, as whoever serves it sees it: its name, its placements, the directory of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apriel_assets.errors import UserError
from apriel_assets.serving.export import ENGINES, RELEASE

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """What `apriel export` wrote."""

    directory: Path
    name: str
    default: str  # placement
    placements: tuple[str, ...]  # best answers first
    throughput: Mapping[str, Sequence[Row]]  # measured rows by placement, if there are any

    def engine_directory(self, placement: str) -> Path:
        return self.directory / ENGINES / placement

    @property
    def models(self) -> dict[str, str]:
        """Placement by model name: the release's own name for the default, `name-placement` for each."""
        return {self.name: self.default, **{f"{self.name}-{own}": own for own in self.placements}}

    @property
    def router(self) -> str:
        """The model name of requests that leave the choice to the policy."""
        return f"{self.name}-auto"


def read_release(directory: Path) -> Release:
    """Read what `apriel export` wrote.

    Raises:
        UserError: no release, or one that lacks a placement's directory.
    """
    try:
        content = json.loads((directory / RELEASE).read_text())
        default = content["default"]
        names = [default, *(own for own in content["placements"] if own != default)]
        found = Release(
            directory=directory,
            name=content["name"],
            default=default,
            placements=tuple(names),
            throughput=content.get("throughput", {}),
        )
    except OSError as error:
        raise UserError(
            f"{directory} has no {RELEASE}: {error.strerror}; write a release with `apriel export DIRECTORY`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / RELEASE} is not what `apriel export` wrote; export again") from error
    for own in found.placements:
        if not (found.engine_directory(own) / "config.json").is_file():
            raise UserError(f"{directory} has no engine {own!r}; copy it whole, or export again")
    if "auto" in found.placements:
        raise UserError("a placement cannot be called auto: that is the router's name")
    return found
