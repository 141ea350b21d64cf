"""A run that is cancelled or killed from the command line leaves no process, and the next run resumes its training."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from apriel_assets.workspace import open_workspace
from resources import listeners

OVERLAYS = [
    "h1.steps.h3.distill.steps=4000",
    "h1.steps.h3.distill.save_every=5",
    "execution.steps={h1/h3: {launcher: process}}",
]


@pytest.fixture(scope="module")
def home(world, tmp_path_factory):
    return shutil.copytree(world, tmp_path_factory.mktemp("cancelled") / "home")


def states(home: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in home.glob("work/h1/h3/*/step-*"))


def training(recipe: Path, home: Path) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Start `apriel run`; return it and every process of its step once the step has saved a state."""
    before = states(home)
    words = [word for overlay in OVERLAYS for word in ("--set", overlay)]
    command = [sys.executable, "-m", "apriel_assets.cli", "run", "--recipe", recipe, "--home", home, "--json"]
    process = subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 180
    while states(home) == before or not states(home):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 2  # the supervisor and the step
    return process, below


# In this order: each run goes on from where the one before was cut off.
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_process_outlives_the_run(number, code, home, tiny_recipe_file):
    reached = states(home)
    process, below = training(tiny_recipe_file, home)
    assert not reached or states(home)[0] >= reached[-1]  # it did not start over
    process.send_signal(number)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == code
    assert "Traceback" not in errors
    _, left = psutil.wait_procs(below, timeout=15)
    assert not left
    assert states(home)


class StopAtOnce:
    """Notes the first progress of the resumed training, and interrupts the run."""

    first: int | None = None

    def __call__(self, step: str, done: int, total: int, figures: dict[str, float]) -> None:
        self.first = done
        raise KeyboardInterrupt


def test_inline_training_goes_on_from_the_same_state(home, tiny_recipe_file):
    """Where a step runs is in no address: what one process saved, another resumes."""
    (reached,) = states(home)
    stop = StopAtOnce()
    with (
        open_workspace(str(tiny_recipe_file), home, OVERLAYS[:2], write=True) as workspace,
        listeners.listening(stop),
        pytest.raises(KeyboardInterrupt),
    ):
        workspace.run(["h1/h3"])
    assert stop.first == reached + 1
