"""The files of a training state, and whether they are as they were written; training itself is in `distillation`."""

import json
from pathlib import Path

from apriel_assets.seals import changed_file, is_whole

PREFIX = "step-"
HEADER = "state.json"
STATE_SEAL = "state_sha256"  # of all other keys of the header
STATE_FORMAT = 1


def state_problem(directory: Path) -> str | None:
    """Say what keeps a state from being used, reading all of it; None: nothing.

    States from before there were formats have no hashes and are taken as they are.
    """
    try:
        header = json.loads((directory / HEADER).read_text())
        if "format" not in header and STATE_SEAL not in header:
            return None if "identity" in header else f"{HEADER} is damaged"
        if not is_whole(header, STATE_SEAL):
            return f"{HEADER} is damaged"
    except (OSError, ValueError, AttributeError, TypeError):
        return f"{HEADER} is missing or damaged"
    if header["format"] != STATE_FORMAT:
        return f"has format {header['format']}, this version reads {STATE_FORMAT}"
    return changed_file(directory, header["files"])
