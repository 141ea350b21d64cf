"""Who made an artifact: code revision, library versions, device. Read once a process; never a secret or a user name."""

import datetime
import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import apriel_assets

LIBRARIES = ("torch", "transformers", "accelerate", "dagster", "duckdb", "pyarrow", "numpy")


@functools.cache
def code_revision() -> str:
    """Return `APRIEL_COMMIT`, else the checkout's git commit (with `+dirty` if edited), else the package version."""
    if given := os.environ.get("APRIEL_COMMIT", "").strip():
        return given  # an image has no checkout: who builds it says what went in
    root = Path(apriel_assets.__file__).parent.parent
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return f"version {apriel_assets.__version__}"
    return commit.strip()[:12] + ("+dirty" if status.strip() else "")


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that can change a number."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}


@functools.cache
def device_name() -> str:
    """Return the GPU's name if torch sees one, else the CPU's model name."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    return platform.processor() or platform.machine()


def peak_memory_bytes() -> int:
    """Return the process's peak resident memory so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def environment() -> dict[str, Any]:
    """Return what every provenance record holds about where it was made."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "code": code_revision(),
        "libraries": library_versions(),
        "device": device_name(),
    }
