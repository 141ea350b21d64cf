"""Answers that a model gave, kept on disk as they come, so that an interrupted eval goes on from there.

An answer belongs to a scope, which names the model's version and all else that decides it, and to its request. Each
process appends lines to a file of its own; a line that was torn when the process was killed, or damaged since, is
lost, nothing else.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from apriel_assets.seals import digest

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 2.0  # of work that a kill may cost


def request_keys(kind: str, requests: Iterable[Any]) -> list[str]:
    """Return one key per request (JSON-serialisable); the same request asked again gets another one."""
    seen: Counter[str] = Counter()
    keys = []
    for request in requests:
        text = json.dumps([kind, request], ensure_ascii=True, sort_keys=True)
        keys.append(hashlib.sha256(f"{text}#{seen[text]}".encode()).hexdigest())
        seen[text] += 1
    return keys


class KeptAnswers:
    """JSON values by request key, of one scope; use it in a `with`, so that the last ones are on disk, too."""

    def __init__(self, directory: Path, scope: str) -> None:
        """Use a directory, made when first written."""
        self._folder = directory / hashlib.sha256(scope.encode()).hexdigest()[:32]
        self._file: TextIO | None = None
        self._flushed = time.monotonic()

    def __enter__(self) -> "KeptAnswers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self) -> Mapping[str, Any]:
        """Return every answer of the scope, those of other processes included; torn lines are left out."""
        found: dict[str, Any] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            for number, line in enumerate(lines, start=1):
                if (answer := _answer(line)) is None:
                    logger.warning("ignored line %d of %s, which holds no answer", number, path)
                else:
                    found[answer[0]] = answer[1]
        return found

    def add(self, key: str, value: Any) -> None:
        """Keep one answer; it is on disk two seconds later, or when this is closed."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / f"{uuid.uuid4().hex}.jsonl").open("w", encoding="utf-8")
        self._file.write(json.dumps([key, value, digest([key, value])]) + "\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring what was added to the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Bring what was added to the disk, and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None


def _answer(line: str) -> tuple[str, Any] | None:
    """Return a line's key and value, or None if it is not as it was written."""
    try:
        key, value, written = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (key, value) if written == digest([key, value]) else None


def answers_problem(path: Path) -> str | None:
    """Say which line of a file of kept answers is not as it was written; None: all are. The last may be torn."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if line.endswith("\n") and _answer(line) is None:
            return f"line {number} holds no answer"
    return None
