"""Which layout a home has. A home from before there were formats has no file, and is as format 1.

Raised when an older program would misread a newer home; what is merely added needs no new format.
"""

import json
from pathlib import Path

from apriel_assets.errors import UserError
from resources.atomic import replaced_file

HOME_FORMAT = 1
_FILE = "format.json"
_TEXT = f'{{"format": {HOME_FORMAT}}}\n'


def check_format(home: Path) -> None:
    """Refuse a home that a newer version wrote.

    Raises:
        UserError: its format is not known here, or the file that says so is damaged.
    """
    path = home / _FILE
    if path.is_file() and (problem := format_problem(path)):
        raise UserError(f"{path} {problem}")


def write_format(home: Path) -> None:
    """Write down the format of a home that does not say it yet."""
    if not (home / _FILE).exists():
        with replaced_file(home / _FILE) as temporary:
            temporary.write_text(_TEXT)


def format_problem(path: Path) -> str | None:
    """Say what is wrong with a home's format, or None."""
    text = path.read_text(errors="replace")
    if text == _TEXT:
        return None
    try:
        found = json.loads(text)["format"]
    except (ValueError, KeyError, TypeError):
        return f"is damaged; delete it if this home was last used by apriel-assets of format {HOME_FORMAT}"
    if isinstance(found, int) and found > HOME_FORMAT:
        return (
            f"says format {found}, this version of apriel-assets reads up to {HOME_FORMAT}; upgrade it, or choose "
            "another home"
        )
    return (
        f"is damaged: {text.strip()[:40]!r} is no format; delete it if this home is of format {HOME_FORMAT}"
    )
