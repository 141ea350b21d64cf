"""Which GPUs are whose on this machine: one lock file per device, held by the kernel for as long as its holder lives.

A pool of Dagster counts how many steps may run, but cannot say on which device; and it does not know of other homes or
users. A lease does. The lock files lie in one directory for the whole machine, `APRIEL_LEASES`.
"""

import contextlib
import fcntl
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from apriel_assets.errors import UserError

_POLL_S = 0.2
_WAITING = "queue"


@dataclass(frozen=True)
class Lease:
    """GPUs that are ours until the block ends."""

    devices: tuple[str, ...]  # as CUDA_VISIBLE_DEVICES names them
    handles: tuple[int, ...]  # open lock files: a process that inherits them keeps the lease alive

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see these devices alone; nothing if none was asked for."""
        if not self.devices:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def lease_directory() -> Path:
    """Return where the lock files are: `APRIEL_LEASES`, else a directory in the machine's temporary one."""
    return Path(os.environ.get("APRIEL_LEASES") or Path(tempfile.gettempdir()) / "apriel-gpu-leases")


def visible_devices() -> tuple[str, ...]:
    """Return the GPUs that this process may use, by one name each for the whole machine (their UUID).

    `APRIEL_FAKE_GPUS=n` stands for n devices without any: for tests, and to try a recipe on a machine without GPUs.
    """
    if count := os.environ.get("APRIEL_FAKE_GPUS"):
        if not count.isdecimal():
            raise UserError(f"APRIEL_FAKE_GPUS={count} must be a number of devices")
        return tuple(str(index) for index in range(int(count)))
    uuids = _gpu_uuids()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return uuids
    return tuple(found for name in allowed.split(",") if (found := _by_name(name.strip(), uuids)))


def has_gpus() -> bool:
    """Tell whether this process may use a GPU; those that APRIEL_FAKE_GPUS stands for are none."""
    return not os.environ.get("APRIEL_FAKE_GPUS") and bool(visible_devices())


def _by_name(name: str, uuids: tuple[str, ...]) -> str | None:
    if name.isdecimal():
        return uuids[int(name)] if int(name) < len(uuids) else None
    return next((uuid for uuid in uuids if name and uuid.startswith(name)), None)


def _gpu_uuids() -> tuple[str, ...]:
    # Not torch: asking it would put a CUDA context of this process on a device.
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in listed.splitlines() if line.strip())


@contextlib.contextmanager
def leased(count: int, holder: str, on_wait: Callable[[str], None] = lambda holders: None) -> Iterator[Lease]:
    """Hold `count` GPUs, waiting until so many are free.

    One waiter at a time takes devices as they come free; who else waits looks again and again for its turn, in no
    order.

    Args:
        count: devices; 0 holds nothing and does not look for any.
        holder: what they are for, shown to those who wait.
        on_wait: called once, with who holds what, if there is something to wait for.

    Raises:
        UserError: this process sees fewer GPUs than asked for.
    """
    if count == 0:
        yield Lease((), ())
        return
    devices = visible_devices()
    if len(devices) < count:
        raise UserError(
            f"{holder} asks for {count} GPUs, this machine shows {len(devices)}; lower execution.gpus, "
            "or set CUDA_VISIBLE_DEVICES to more of them"
        )
    directory = _made(lease_directory())
    held: dict[str, int] = {}
    try:
        # Who waits keeps the others waiting behind it: small requests cannot starve a large one.
        with _queue(directory, lambda: on_wait(_holders(directory, devices))) as told:
            while len(held) < count:
                for device in devices:
                    if len(held) < count and device not in held:
                        handle = _try_lock(directory / f"gpu-{device}.lock", holder)
                        held |= {} if handle is None else {device: handle}
                if len(held) < count:
                    told()
                    time.sleep(_POLL_S)
        # In the machine's order: the first process gets the first device.
        yield Lease(tuple(device for device in devices if device in held), tuple(held.values()))
    finally:
        for handle in held.values():
            os.close(handle)


@contextlib.contextmanager
def _queue(directory: Path, wait: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Hold the right to take devices; yields `wait` in a form that is carried out once."""
    waited = False

    def wait_once() -> None:
        nonlocal waited
        if not waited:
            wait()
        waited = True

    handle = _opened(directory / f"{_WAITING}.lock")
    try:
        while not _locked(handle):
            wait_once()
            time.sleep(_POLL_S)
        yield wait_once
    finally:
        os.close(handle)


def _try_lock(path: Path, holder: str) -> int | None:
    handle = _opened(path)
    if not _locked(handle):
        os.close(handle)
        return None
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"holder": holder, "pid": os.getpid()}).encode(), 0)
    return handle


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holders(directory: Path, devices: tuple[str, ...]) -> str:
    """Say who wrote last into each device's lock file that is locked."""
    found = []
    for device in devices:
        path = directory / f"gpu-{device}.lock"
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text())
            handle = _opened(path)
            if not _locked(handle):
                found.append(f"{content['holder']} (pid {content['pid']}) has GPU {device}")
            os.close(handle)
    return "; ".join(found) or "another step is being served"


def _made(directory: Path) -> Path:
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True)
            directory.chmod(0o1777)  # for every user of the machine
        return directory
    except OSError as error:
        raise UserError(
            f"cannot keep GPU leases in {directory}: {error.strerror}; set APRIEL_LEASES to a directory that all "
            "users of these GPUs can write"
        ) from error


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            # Without O_CREAT: in a shared directory the kernel refuses it for files of other users.
            return os.open(path, flags)
        except FileNotFoundError:
            handle = os.open(path, flags | os.O_CREAT, 0o666)
            os.fchmod(handle, 0o666)
            return handle
    except OSError as error:
        raise UserError(
            f"cannot use the GPU lease {path}: {error.strerror}; set APRIEL_LEASES to a directory that all users of "
            "these GPUs can write"
        ) from error
