"""Paths as a user writes them: `~` stands for a home directory."""

from pathlib import Path

from apriel_assets.errors import UserError


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~user` replaced.

    Raises:
        UserError: nobody of that name is on this machine.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user on this machine; write the whole path") from error
