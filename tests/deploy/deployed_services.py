"""A PostgreSQL server of the tests' own, and the services of deploy/docker-compose.yaml as plain processes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
BIN = ROOT / ".venv" / "bin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    until = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < until, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)
    return found


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())


def postgres_binaries() -> Path | None:
    """Return where initdb and postgres are: Debian keeps them off the PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("initdb"):
        places.append(Path(found).parent)
    return next((place for place in places if (place / "initdb").exists()), None)


class PostgresServer:
    """A server with an empty database, which can be stopped as a power cut would, and started again."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # It refuses to run as root; Debian's package makes a user for it.
        user = "postgres" if os.geteuid() == 0 else None
        # Not under pytest's directory, which only its owner may enter.
        self._directory = Path(tempfile.mkdtemp(prefix="apriel-postgres-", dir="/tmp"))
        if user:
            shutil.chown(self._directory, user)
        self._port, self._data = str(free_port()), self._directory / "data"
        self._quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "user": user, "cwd": self._directory}
        self._server: subprocess.Popen | None = None
        made = [
            binaries / "initdb",
            "-D",
            self._data,
            "-U",
            "dagster",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run([*made, "--locale=C"], check=True, **self._quiet)
        self.start()
        here = ["-h", "127.0.0.1", "-p", self._port]
        subprocess.run([binaries / "createdb", *here, "-U", "dagster", "dagster"], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """What deploy/dagster.yaml reads."""
        return {
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": self._port,
            "POSTGRES_DB": "dagster",
            "POSTGRES_USER": "dagster",
            "POSTGRES_PASSWORD": "any",
        }

    def start(self) -> None:
        options = [
            "-c",
            "fsync=off",
            "-c",
            "listen_addresses=127.0.0.1",
            "-k",
            self._directory,
            "-p",
            self._port,
        ]
        with (self._directory / "log").open("a") as log:
            command = [self._binaries / "postgres", "-D", self._data, *options]
            self._server = subprocess.Popen(command, stderr=log, **self._quiet)
        ready = [self._binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", self._port]
        wait_for(lambda: subprocess.run(ready).returncode == 0, 60, "PostgreSQL answers")

    def stop(self) -> None:
        """End it at once, whoever is connected."""
        if self._server is not None:
            self._server.send_signal(signal.SIGQUIT)
            self._server.wait(60)
            self._server = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


@contextlib.contextmanager
def postgres_server(binaries: Path) -> Iterator[PostgresServer]:
    """Yield a server that is gone afterwards."""
    server = PostgresServer(binaries)
    try:
        yield server
    finally:
        server.remove()


@dataclass(frozen=True)
class Deployment:
    """Worker, webserver and daemon, running."""

    home: Path
    recipe: Path
    environment: dict[str, str]
    port: str  # of the webserver
    services: dict[str, subprocess.Popen]

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        address = f"http://127.0.0.1:{self.port}/graphql"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            content = json.loads(reply.read())
        assert "errors" not in content, content["errors"]
        return content["data"]

    def launch(self, asset: str) -> str:
        """Materialize one asset as the UI does; return the run's id."""
        query = """mutation($assets: [AssetKeyInput!]) { launchRun(executionParams: {
            selector: {repositoryLocationName: "apriel_assets", repositoryName: "__repository__",
                       jobName: "__ASSET_JOB", assetSelection: $assets},
            runConfigData: {}}) { __typename ... on LaunchRunSuccess { run { runId } } } }"""
        launched = self.graphql(query, assets=[{"path": asset.split("/")}])["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return launched["run"]["runId"]

    def terminate(self, run: str) -> str:
        query = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"
        return self.graphql(query, run=run)["terminateRun"]["__typename"]

    def status(self, run: str) -> str:
        return self.graphql(
            "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }", run=run
        )["runOrError"]["status"]

    def step_processes(self) -> list[psutil.Process]:
        """Return every process below the worker that builds or watches a step."""
        found = []
        for process in psutil.Process(self.services["worker"].pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                if "supervisor" in command or "apriel_assets.step" in command:
                    found.append(process)
        return found


@contextlib.contextmanager
def deployment(home: Path, recipe: Path, environment: dict[str, str], scratch: Path) -> Iterator[Deployment]:
    """Start the services with compose's own commands, on other ports."""
    ports = {"4000": str(free_port()), "3000": str(free_port())}
    workspace = scratch / "workspace.yaml"
    text = (DEPLOY / "workspace.yaml").read_text()
    workspace.write_text(text.replace("host: worker", "host: 127.0.0.1").replace("4000", ports["4000"]))
    places = {**ports, "deploy/workspace.yaml": str(workspace), "0.0.0.0": "127.0.0.1"}
    described, running = compose()["services"], {}

    def started(service: str) -> None:
        command = [places.get(word, word) for word in described[service]["command"]]
        with (scratch / f"{service}.log").open("w") as log:
            running[service] = subprocess.Popen(command, env=environment, cwd=scratch, stdout=log, stderr=log)

    def is_healthy() -> bool:
        _, *check = [places.get(word, word) for word in described["worker"]["healthcheck"]["test"]]
        return subprocess.run(check, env=environment, capture_output=True).returncode == 0

    try:
        started("worker")
        wait_for(is_healthy, 180, "the worker is healthy")
        started("webserver")
        started("daemon")
        wait_for(lambda: _answers(ports["3000"]), 180, "the webserver answers")
        yield Deployment(home, recipe, environment, ports["3000"], running)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=5).status == 200
    return False
