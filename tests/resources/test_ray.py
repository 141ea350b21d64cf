"""Steps as tasks of a real Ray cluster: two nodes on this machine, one pretended GPU each.

Needs Ray (`pip install -e '.[ray]'`); skipped without. `make test-ray` installs it and runs this file.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from apriel_assets.errors import UserError
from resources.launchers import execution, process_group
from resources.launchers.config import ExecutionConfig
from resources.launchers.failures import TransientStepError
from tests.resources.test_launchers import Step

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    nodes.add_node(num_cpus=2, num_gpus=1)
    nodes.wait_for_nodes()
    yield nodes.address
    nodes.shutdown()


@pytest.fixture(autouse=True)
def light(monkeypatch, cluster):
    monkeypatch.setattr(execution, "STEP_MODULE", "light_step")
    monkeypatch.setattr(process_group, "GRACE_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[2]}")
    monkeypatch.setenv("RAY_ADDRESS", cluster)


def ray_step(name, home, **settings):
    step = Step(name, home)
    step.config = ExecutionConfig(launcher="ray", **settings)
    return step


def test_progress_figures_and_place_come_back(tmp_path):
    step = ray_step("fine", tmp_path / "home", gpus=1)
    made = step.materialize()
    assert step.progress == [(1, 2, {"loss_nats": 0.5}), (2, 2, {"loss_nats": 0.5})]
    assert (made["launcher"], made["devices"], made["host"]) == ("ray", ["0"], os.uname().nodename)
    assert step.draft.figures["tokens"] == 7
    assert 0.4 < step.draft.figures["gpu_seconds"] == step.draft.figures["seconds"]
    assert not step.order.directory.exists()


def test_four_steps_share_two_nodes_and_never_a_device(tmp_path):
    steps = [ray_step("fine", tmp_path / f"home{index}", gpus=1) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda step: step.materialize(), steps))
    assert len({own["node"] for own in made}) == 2
    held: dict[str, list[tuple[float, float]]] = {}
    for step, own in zip(steps, made, strict=True):
        began, ended, device = (step.draft.path / "held").read_text().split()
        assert [device] == own["devices"]
        held.setdefault(own["node"], []).append((float(began), float(ended)))
    for spans in held.values():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_killed_step_is_tried_again(tmp_path):
    step = ray_step("killed_once", tmp_path / "home", gpus=1)
    step.materialize()
    assert step.tries == 2
    with pytest.raises(TransientStepError, match="killed by signal 9"):
        ray_step("killed", tmp_path / "other", gpus=1).materialize()


def test_more_gpus_than_any_node_has_is_one_line(tmp_path):
    with pytest.raises(UserError, match="2 GPUs on one node were asked for, and the cluster's largest has 1"):
        ray_step("fine", tmp_path / "home", gpus=2, processes=2).materialize()


def test_no_cluster_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1") as caught:
        ray_step("fine", tmp_path / "home").materialize()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_cancelled_step_leaves_no_process_on_its_node(number, tmp_path):
    """The task's client is ended or dies; what it started on the node goes with it."""
    code = "import sys, time; open(sys.argv[1], 'w').write(str(__import__('os').getpid())); time.sleep(120)"
    note, pid = tmp_path / "note.json", tmp_path / "pid"
    command = [
        sys.executable,
        "-m",
        "resources.launchers.ray_task",
        "1",
        str(note),
        sys.executable,
        "-c",
        code,
        str(pid),
    ]
    client = subprocess.Popen(command)
    until = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < until
        time.sleep(0.1)
    process = psutil.Process(int(pid.read_text()))
    assert json.loads(note.read_text())["devices"] == ["0"]
    os.kill(client.pid, number)
    client.wait(15)
    assert not psutil.wait_procs([process], timeout=15)[1]


def test_time_limit_ends_the_task(tmp_path):
    began = time.monotonic()
    with pytest.raises(UserError, match="took longer than"):
        ray_step("slow", tmp_path / "home", gpus=1, timeout_s=8).materialize()
    assert time.monotonic() - began < 40
