"""`dagster dev` as `make ui` starts it, on a home of one's own; ended with all that it started."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_LOADED = (
    "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
)


@contextmanager
def serving(home: Path, *, seconds: float = 120) -> Iterator[str]:
    """Yield the address of a UI on this home, loaded.

    Raises:
        AssertionError: it does not come up in time; says what it wrote.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = home / "dagster-dev.log"
    environment = {**os.environ, "APRIEL_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    command = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-w",
        "workspace.yaml",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + seconds
        while not _is_loaded(address):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield address
    finally:
        _end(process)


def _is_loaded(address: str) -> bool:
    try:
        found = json.dumps(ask(address, _LOADED))
    except OSError:
        return False
    return '"RepositoryLocation"' in found


def ask(address: str, query: str) -> dict:
    """Return the answer to a GraphQL query."""
    request = urllib.request.Request(
        f"{address}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _end(process: subprocess.Popen) -> None:
    # Runs that it launched are in its process group too.
    for kind in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            continue
