"""A real code server, webserver and daemon on a home, for tests. Only their pauses are shortened."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

from resources.launchers.supervisor import die_with_parent

LOCATION = "apriel_assets"
DAEMON = Path(__file__).with_name("quick_daemon.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Services:
    """What `dagster dev` starts, each by itself: so that all can be ended, and logs be read."""

    def __init__(self, home: Path, recipe: Path, *, run_in_daemon: bool = True) -> None:
        """Start them.

        Args:
            home: a home.
            recipe: file that the code location loads.
            run_in_daemon: runs are carried out by the daemon's own process, which imports torch once.
        """
        self.home, self.recipe = home, recipe
        self.port, code_port = free_port(), free_port()
        workspace = home / "workspace.yaml"
        server = {"host": "127.0.0.1", "port": code_port, "location_name": LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
        config = yaml.safe_load((home / "dagster" / "dagster.yaml").read_text())
        config.pop("concurrency", None)
        config["run_coordinator"] = {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
            "config": {"max_concurrent_runs": 1, "dequeue_interval_seconds": 1},
        }
        if run_in_daemon:
            config["run_launcher"] = {
                "module": "dagster._core.launcher.sync_in_memory_run_launcher",
                "class": "SyncInMemoryRunLauncher",
            }
        (home / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(config))
        self._processes: dict[str, subprocess.Popen] = {}
        self._commands: dict[str, list[str]] = {}
        module = ["-m", "apriel_assets.definitions", "--location-name", LOCATION]
        code = ["code-server", "start", "-h", "127.0.0.1", "-p", str(code_port), *module]
        self._start("code", [sys.executable, "-m", "dagster", *code])
        web = ["-h", "127.0.0.1", "-p", str(self.port), "-w", str(workspace)]
        self._start("web", [sys.executable, "-m", "dagster_webserver", *web])
        self._start("daemon", [sys.executable, str(DAEMON), "run", "-w", str(workspace)])

    def _start(self, name: str, command: list[str]) -> None:
        self._commands[name] = command
        environment = {
            **os.environ,
            "APRIEL_HOME": str(self.home),
            "APRIEL_RECIPE": str(self.recipe),
            "DAGSTER_HOME": str(self.home / "dagster"),
            "OMP_NUM_THREADS": "1",
        }
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
                cwd=Path(__file__).parent.parent.parent,
            )

    def kill(self, *names: str) -> None:
        """SIGKILL some of them at once, each with all that it has started."""
        for name in names:
            os.killpg(self._processes[name].pid, signal.SIGKILL)
        for name in names:
            self._processes[name].wait()

    def start_again(self, *names: str) -> None:
        """Start what was killed, as it was."""
        for name in names:
            self._start(name, self._commands[name])

    def logs(self) -> str:
        return "\n".join(
            f"--- {name}\n{(self.home / f'{name}.log').read_text()[-4000:]}" for name in self._processes
        )

    def query(self, text: str, **variables) -> dict:
        """Ask the webserver's GraphQL."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            json.dumps({"query": text, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.loads(answer.read())
        assert "errors" not in content, content
        return content["data"]

    def wait_until_up(self, seconds: float = 180) -> None:
        """Wait until the webserver shows the code location."""
        until = time.monotonic() + seconds
        while True:
            assert all(process.poll() is None for process in self._processes.values()), self.logs()
            try:
                if self.query("{repositoriesOrError {... on RepositoryConnection {nodes {name}}}}")[
                    "repositoriesOrError"
                ].get("nodes"):
                    return
            except OSError:
                pass
            assert time.monotonic() < until, self.logs()
            time.sleep(0.2)

    def reload(self) -> dict:
        """Reload the code location, as the UI's button does."""
        mutation = """mutation ($name: String!) {reloadRepositoryLocation(repositoryLocationName: $name) {
            __typename ... on WorkspaceLocationEntry {loadStatus locationOrLoadError {
                __typename ... on PythonError {message}}}}}"""
        return self.query(mutation, name=LOCATION)["reloadRepositoryLocation"]

    def stop(self) -> None:
        """End everything, by process group."""
        for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            for process in reversed(self._processes.values()):
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    continue
            for process in self._processes.values():
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    break
