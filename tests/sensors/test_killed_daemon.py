"""A real daemon is killed while a run is at work, then all else is: the work ends, nothing lost or built twice."""

import pytest
import yaml

from apriel_assets.workspace import open_workspace
from tests.sensors.services import Services
from tests.sensors.watched_home import World

# One step of H1 that trains long enough to be hit, and what follows from it.
STEPS, SAVE_EVERY = 200, 10
LATE = 40  # steps: a training that started over would be seen on its way there
REBUILT = ["evals/h1", "h1/h1", "leaderboard", "report", "throughput/h1"]


class Trained(World):
    """A home whose only step of H1 is trained again after an edit."""

    def saved(self):
        """How many steps the saved training state has; 0: there is none."""
        found = self.home.glob("work/h1/h1/*/step-*")
        return max((int(path.name.removeprefix("step-")) for path in found), default=0)

    def made(self):
        """How many checkpoints of the step there are, of all edits."""
        return len(list(self.home.glob("artifacts/h1/h1/*/provenance.json")))

    def goes_on_from(self, step):
        """Wait until the training has come to its end; it must not be seen before this step."""
        before = self.made()

        def is_done():
            saved = self.saved()
            assert saved >= step or not saved, f"started over: at {saved}, was at {step}"
            return self.made() > before

        self.wait(is_done, pause_s=0.02)

    def finish(self):
        """Build what is left, without the daemon; return what was materialized since the last look, by any run."""
        with open_workspace(str(self.recipe), self.home, write=True) as workspace:
            workspace.run()
            assert workspace.plan().rows == ()
        return sorted(asset for asset, _ in self.new_materializations(failures=None))


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


@pytest.mark.services
def test_a_killed_daemon_loses_nothing_and_builds_nothing_twice(trained):
    world, content = trained
    world.until_quiet()
    world.new_materializations()
    content["h1"]["distill"] |= {"steps": STEPS, "save_every": SAVE_EVERY}
    world.edit(content)
    world.wait(lambda: world.saved() >= LATE, pause_s=0.02)
    world.services.kill("daemon")  # the run is a process of its own, and goes on
    at = world.saved()
    world.wait(lambda: world.saved() > at, pause_s=0.02)
    world.services.kill("code")  # and the run with it
    last = world.saved()
    assert last, "the training had ended: give it more steps"
    world.services.start_again("code", "daemon")
    world.goes_on_from(last)
    world.services.stop()
    assert world.finish() == REBUILT
    assert world.made() == 2  # before the edit and after it
