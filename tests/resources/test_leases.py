"""GPU leases: one holder a device, freed by the kernel, served in order."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from apriel_assets.errors import UserError
from resources.leases import leased, visible_devices

FORKED = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def two_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("APRIEL_FAKE_GPUS", "2")
    monkeypatch.setenv("APRIEL_LEASES", str(tmp_path / "leases"))


def hold(count: int, seconds: float, log: Path) -> None:
    with leased(count, f"pid {os.getpid()}") as lease, log.open("a") as file:
        began = time.monotonic()
        time.sleep(seconds)
        file.write(f"{began} {time.monotonic()} {','.join(lease.devices)}\n")


def test_four_holders_never_share_one_of_two_devices(tmp_path):
    log = tmp_path / "held"
    holders = [FORKED.Process(target=hold, args=(1, 0.3, log)) for _ in range(4)]
    for holder in holders:
        holder.start()
    for holder in holders:
        holder.join(20)
    held = [line.split() for line in log.read_text().splitlines()]
    assert len(held) == 4
    assert {device for _, _, device in held} == {"0", "1"}
    for device in "01":
        spans = sorted((float(began), float(ended)) for began, ended, own in held if own == device)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_dead_holder_frees_its_device():
    code = textwrap.dedent("""
        import time
        from resources.leases import leased
        with leased(2, "holder"):
            print("held", flush=True)
            time.sleep(60)
    """)
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    told = []
    os.kill(holder.pid, signal.SIGSTOP)
    os.kill(holder.pid, signal.SIGKILL)
    with leased(1, "next", told.append) as lease:
        assert len(lease.devices) == 1
    holder.communicate()


def test_who_waits_is_told_who_holds(tmp_path):
    holder = FORKED.Process(target=hold, args=(2, 0.6, tmp_path / "held"))
    holder.start()
    while not list((tmp_path / "leases").glob("gpu-1.lock")):
        time.sleep(0.01)
    told = []
    with leased(1, "next", told.append) as lease:
        assert lease.environment["CUDA_VISIBLE_DEVICES"] in ("0", "1")
    holder.join()
    assert len(told) == 1
    assert f"pid {holder.pid}" in told[0]


def test_a_large_request_is_not_starved_by_small_ones(tmp_path):
    log = tmp_path / "held"
    first = FORKED.Process(target=hold, args=(1, 0.8, log))
    first.start()
    time.sleep(0.2)
    large = FORKED.Process(target=hold, args=(2, 0.1, log))
    large.start()
    time.sleep(0.3)
    small = FORKED.Process(target=hold, args=(1, 0.1, log))  # a device is free, but the large one came first
    small.start()
    for holder in (first, large, small):
        holder.join(20)
    order = [
        line.split()[2]
        for line in sorted(log.read_text().splitlines(), key=lambda text: float(text.split()[0]))
    ]
    assert order[1] == "0,1"


def test_inherited_handles_keep_the_lease_alive():
    with leased(1, "parent") as lease:
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.handles
        )
    # The parent has let go; its child has not.
    with leased(1, "other") as other:
        assert other.devices != lease.devices
    child.communicate(b"\n")


def test_fewer_gpus_than_asked_for_is_one_line():
    with pytest.raises(UserError, match="asks for 3 GPUs, this machine shows 2"), leased(3, "h1/h3"):
        pass


def test_no_gpus_asked_for_looks_for_none(monkeypatch):
    monkeypatch.setenv("APRIEL_FAKE_GPUS", "0")
    with leased(0, "report") as lease:
        assert lease.environment == {}


def test_visible_devices_follow_cuda_visible_devices(monkeypatch, tmp_path):
    """Every name of a device means the same one: index or UUID, also in part."""
    monkeypatch.delenv("APRIEL_FAKE_GPUS")
    fake = tmp_path / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nprintf 'GPU-aa11\\nGPU-bb22\\nGPU-cc33\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices() == ("GPU-aa11", "GPU-bb22", "GPU-cc33")
    for allowed, expected in {
        "2,0": ("GPU-cc33", "GPU-aa11"),
        "GPU-bb": ("GPU-bb22",),
        "": (),
        "7": (),
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
        assert visible_devices() == expected


def test_lease_directory_that_cannot_be_used_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APRIEL_LEASES", str(tmp_path / "file" / "leases"))
    with pytest.raises(UserError, match="set APRIEL_LEASES"), leased(1, "h1/h3"):
        pass
