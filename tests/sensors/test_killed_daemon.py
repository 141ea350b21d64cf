"""A real daemon is killed while a run is at work, then everything is: in the end all is built, nothing twice."""

import pytest
import yaml

from apriel_assets.workspace import open_workspace
from tests.sensors.services import Services
from tests.sensors.watched_home import World

# One step of H1 that trains long enough to be hit, and what follows from it.
STEPS, SAVE_EVERY = 200, 10
LATE = 100  # steps: a training that started over would be seen on its way there
REBUILT = ["evals/h1", "h1/h1", "leaderboard", "report", "throughput/h1"]


class Trained(World):
    """A home whose only step of H1 is trained again at each edit."""

    def train_anew(self, content, learning_rate):
        """Edit, and wait until half of the training is saved."""
        content["h1"]["distill"] |= {"steps": STEPS, "save_every": SAVE_EVERY, "learning_rate": learning_rate}
        self.edit(content)
        self.wait(lambda: max(self.saved(), default=0) >= LATE)

    def saved(self):
        """The training states on disk, by number of steps."""
        return [int(path.name.removeprefix("step-")) for path in self.home.glob("work/h1/h1/*/step-*")]

    def made(self):
        """How many checkpoints of the step there are, of all edits."""
        return len(list(self.home.glob("artifacts/h1/h1/*/provenance.json")))

    def goes_on_from(self, step):
        """Wait until the training is beyond this step; it must not be seen before it."""
        before = self.made()

        def is_beyond():
            saved = self.saved()
            assert all(own >= step for own in saved), f"started over: {saved}, was at {step}"
            return any(own > step for own in saved) or self.made() > before

        self.wait(is_beyond, pause_s=0.02)

    def built_once(self, failures):
        """Wait until all is up to date; check that each asset was made once, by however many runs."""
        self.until_quiet(failures)
        assert sorted(asset for asset, _ in self.new_materializations(failures)) == REBUILT
        with open_workspace(str(self.recipe), self.home) as workspace:
            assert workspace.plan().rows == ()


@pytest.fixture
def trained(tiny_recipe_file, tmp_path):
    home, recipe = tmp_path / "home", tmp_path / "tiny.yaml"
    content = yaml.safe_load(tiny_recipe_file.read_text())
    content |= {"supernet": None, "search": None, "release": {}}
    content["h1"] |= {"schedule": [1], "sft": None, "merge": None}
    content["evals"]["tasks"] = ["recall"]
    content["automation"] = {"reconcile": True, "interval_s": 1, "retry_wait_s": 1}
    recipe.write_text(yaml.safe_dump(content))
    with open_workspace(str(recipe), home, write=True) as workspace:
        workspace.run()
    services = Services(home, recipe, run_in_daemon=False)
    try:
        services.wait_until_up()
        yield Trained(home, recipe, services), content
    finally:
        services.stop()


@pytest.mark.daemon
def test_a_killed_daemon_loses_nothing_and_builds_nothing_twice(trained):
    world, content = trained
    world.until_quiet()
    world.new_materializations()
    before = world.made()
    world.train_anew(content, 0.001)
    world.services.kill("daemon")  # the run is a process of its own, and goes on
    world.services.start_again("daemon")
    world.built_once(failures=0)
    world.train_anew(content, 0.002)
    world.services.kill("daemon", "code")  # and the run with it
    last = max(world.saved())
    world.services.start_again("code", "daemon")
    world.goes_on_from(last)
    world.built_once(failures=1)
    assert world.made() == before + 2
