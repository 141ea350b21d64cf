"""A real `apriel serve` in a process of its own, and what is needed to talk to it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


class Served:
    """One running server."""

    def __init__(self, directory, *arguments, log):
        self.port = free_port()
        self.log = log
        command = [
            sys.executable,
            "-m",
            "apriel_assets.cli",
            "serve",
            str(directory),
            "--port",
            str(self.port),
        ]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=out, stderr=out, cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def wait(self, condition, seconds=90.0):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.log.read_text()[-2000:]}")
            with contextlib.suppress(OSError):
                if (found := condition(self)) is not None and found is not False:
                    return found
            time.sleep(0.05)
        raise AssertionError(f"waited {seconds} s: {self.log.read_text()[-2000:]}")

    def get(self, path, key=None):
        return self._send(urllib.request.Request(self.url + path, headers=_headers(key)))

    def post(self, path, content, key=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", **_headers(key)}
        return self._send(urllib.request.Request(self.url + path, data=data, headers=headers))

    def _send(self, request):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def health(self):
        return json.loads(self.get("/health")[1])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def _headers(key):
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def is_up(served):
    return served.health()["status"] == "ok"
