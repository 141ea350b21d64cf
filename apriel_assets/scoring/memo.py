"""Finished scores on disk, so that no placement is scored twice: not after a crash, not by another budget.

A score belongs to a scope: a digest of the supernet, the completions and what else determines it. Each flush
writes one new JSON file in the scope's directory, whole or not at all, so any number of searches can write at
the same time; all files together are the memo.
"""

import contextlib
import json
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apriel_assets.hybrid.placement import Placement
from apriel_assets.seals import is_whole, sealed

logger = logging.getLogger(__name__)

_FORMAT = 2
_UNSEALED = 1  # the format before that, without a hash
_SEAL = "sha256"  # of all other keys

Figures = dict[str, float]


class ScoreMemo:
    """Scores by (scope, placement); figures by name."""

    def __init__(self, directory: Path) -> None:
        """Use a directory, made when first written."""
        self._directory = directory
        self._known: dict[str, dict[Placement, Figures]] = {}
        self._read: set[Path] = set()

    def load(self, scope: str) -> Mapping[Placement, Figures]:
        """Return every score of a scope, those that other processes wrote meanwhile included.

        Files that are torn, damaged or not a memo's are ignored, with a warning each.
        """
        known = self._known.setdefault(scope, {})
        for path in sorted((self._directory / scope).glob("*.json")):
            if path not in self._read:
                self._read.add(path)
                known.update(_read_scores(path, scope))
        return known

    def add(self, scope: str, scores: Mapping[Placement, Figures]) -> None:
        """Keep finished scores; they are on disk when this returns."""
        if not scores:
            return
        self._known.setdefault(scope, {}).update(scores)
        folder = self._directory / scope
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"placement": placement, "figures": figures} for placement, figures in scores.items()]
        path = folder / f"{uuid.uuid4().hex}.json"
        record = {"format": _FORMAT, "scope": scope, "scores": rows}
        _write_whole(path, json.dumps(sealed(record, _SEAL)))
        self._read.add(path)


def _read_scores(path: Path, scope: str) -> dict[Placement, Figures]:
    try:
        content = json.loads(path.read_text())
        if problem := _problem(content, scope):
            raise ValueError(problem)
        return {
            tuple(str(mixer) for mixer in row["placement"]): {
                str(name): float(value) for name, value in row["figures"].items()
            }
            for row in content["scores"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("ignored %s, which holds no scores of this scope: %s", path, error)
        return {}


def _problem(content: dict[str, Any], scope: str) -> str | None:
    found = content["format"]
    if content["scope"] != scope or found not in (_FORMAT, _UNSEALED):
        return f"format {found}, scope {content['scope']}"
    return "it was damaged" if found == _FORMAT and not is_whole(content, _SEAL) else None


def score_file_problem(path: Path) -> str | None:
    """Say why a file of the memo is ignored; None: it is not."""
    try:
        return _problem(json.loads(path.read_text()), path.parent.name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"cannot be read: {error}"


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
