"""Runs one command on whichever node of a Ray cluster has the GPUs for it, and waits for it.

`python -m resources.launchers.ray_task GPUS NOTE COMMAND...`, started by the launcher like any command of its own. Ray
chooses node and devices and queues what does not fit; `RAY_ADDRESS` says which cluster, without it the one that runs on
this machine. There the command stands under a supervisor as it would here, so nothing outlives a task that is
cancelled, a worker that dies or a driver that is gone. NOTE, a JSON file, gets the node, the devices and when the task
began, or in one line why there is none.

Home and package must be at the same paths on every node. Exits as the command does; 137 if its node was lost, which
is worth another attempt; 2 if there is no cluster, none that could ever hold the task, or a node without the package.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from resources.atomic import write_json
from resources.launchers.process_group import GRACE_S

# What a step must know of the driver; all else (paths of libraries, CUDA_VISIBLE_DEVICES) is the node's own.
_CARRIED = ("APRIEL_", "DAGSTER_PIPES_", "HF_", "OMP_", "PYTHONPATH", "TOKENIZERS_", "TRANSFORMERS_")
_REACH_S = 10.0
_LOST = 128 + signal.SIGKILL


def run_task(gpus: int, note: Path, command: list[str]) -> int:
    """Run the command in a task with so many GPUs; return its exit code."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]
    except ImportError:
        return _refuse(note, "launcher ray needs Ray; pip install 'apriel-assets[ray]'")
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        return _refuse(note, f"no Ray cluster at {address} ({line}); start one, or set RAY_ADDRESS")
    most = max(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    if gpus > most:
        return _refuse(
            note, f"{gpus} GPUs on one node were asked for, and the cluster's largest has {most:g}"
        )
    carried = {key: value for key, value in os.environ.items() if key.startswith(_CARRIED)}
    task = ray.remote(_on_node).options(num_gpus=gpus, num_cpus=1, max_retries=0)
    running = task.remote(command, carried, os.getcwd(), str(note), GRACE_S)
    try:
        return ray.get(running)
    except RayTaskError as error:
        # It ran and failed before the command did: another attempt would, too.
        return _refuse(note, f"its task failed on the node: {str(error).splitlines()[-1]}")
    except RayError:
        return _LOST
    except SystemExit:
        # Only now: Ray 2.60 crashes where a task that has just ended is cancelled.
        ray.cancel(running, force=True)
        raise
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError if nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()


def _on_node(command: list[str], carried: dict[str, str], directory: str, note: str, grace_s: float) -> int:
    import ray  # pyright: ignore[reportMissingImports]

    own: Any = ray.get_runtime_context()
    devices = [str(device) for device in own.get_accelerator_ids().get("GPU", [])]
    found = {"node": own.get_node_id(), "host": os.uname().nodename, "devices": devices, "began": time.time()}
    write_json(Path(note), found)
    # As a process of ours, not through ProcessGroup: its death with this worker is all that is needed.
    supervisor = [sys.executable, "-m", "resources.launchers.supervisor", str(grace_s)]
    with subprocess.Popen(
        [*supervisor, *command], env={**os.environ, **carried}, cwd=directory, stdin=subprocess.PIPE
    ) as process:
        code = process.wait()
    return code if code >= 0 else 128 - code


def _refuse(note: Path, line: str) -> int:
    write_json(note, {"refused": line})
    return 2


def _end(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(run_task(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
