"""What one home has and another lacks, taken over: work on one recipe that was shared out among machines.

Artifacts lie under the address of what they are made from, so two homes of one recipe have the same artifact in the
same place. Nothing is taken that is there already; the next run finds what came in, records it and shows its rows.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from apriel_assets.errors import UserError
from resources.artifact_store import PROVENANCE
from resources.atomic import created_directory, replaced_file
from resources.home_format import check_format
from resources.lake import Lake


def join_home(other: Path, home: Path) -> int:
    """Copy into `home` what only `other` has of artifacts and result tables; return how many artifacts came.

    An artifact that is there stays as it is, also one whose weights were left behind when its home was packed. Nothing
    may work on either meanwhile. What cuts it short leaves whole artifacts alone, and a second call takes the rest.
    Training states and Dagster's records stay where they are.

    Raises:
        UserError: one of them is no home, or of a format that this version does not read.
    """
    for own in (other, home):
        if not (own / "artifacts").is_dir():
            raise UserError(f"{own} is no home with artifacts; give the directory that --home named")
        check_format(own)
    joined = 0
    for artifact in _artifacts(other):
        target = home / artifact.relative_to(other)
        if target.exists():
            continue
        with created_directory(target) as fresh:
            shutil.copytree(artifact, fresh, dirs_exist_ok=True)
        joined += 1
    for path in sorted((other / "lake").rglob("*.parquet")):
        target = home / path.relative_to(other)
        if not target.exists():
            with replaced_file(target) as temporary:
                shutil.copyfile(path, temporary)
    Lake(home).rebuild_catalog()
    return joined


def _artifacts(home: Path) -> Iterator[Path]:
    """Return the directories of whole artifacts; drafts have names that begin with a dot."""
    for provenance in sorted((home / "artifacts").rglob(PROVENANCE)):
        artifact = provenance.parent
        if not any(part.startswith(".") for part in artifact.relative_to(home).parts):
            yield artifact
