"""A home to change, its code location under any overlays, and looks of its sensors in this process."""

import shutil

import dagster as dg
import pytest

from apriel_assets.definitions import code_location, plan_assets
from apriel_assets.loaded_recipe import LoadedRecipe
from apriel_assets.planning.execute import QUIET
from apriel_assets.recipe import load_recipe
from resources.home import open_instance


@pytest.fixture
def home(world, tmp_path):
    return shutil.copytree(world, tmp_path / "home")


class Location:
    """The definitions of a recipe as the daemon has them, with its records."""

    def __init__(self, recipe_file, home, overlays, instance):
        self.recipe = load_recipe(str(recipe_file), overlays)
        assets = plan_assets(self.recipe)
        loaded = LoadedRecipe(recipe=self.recipe, assets=assets, source=str(recipe_file))
        self.home, self.instance = home, instance
        self.defs = code_location(loaded, home)
        self.repository = self.defs.get_repository_def()
        self.cursors = {}

    def look(self, sensor):
        """Evaluate a sensor once; return its result, dynamic partitions added as the daemon does."""
        context = dg.SensorEvaluationContext(
            instance_ref=self.instance.get_ref(),
            instance=self.instance,
            repository_def=self.repository,
            sensor_name=sensor,
            last_tick_completion_time=None,
            last_run_key=None,
            cursor=self.cursors.get(sensor),
            repository_name=None,
        )
        found = self.repository.get_sensor_def(sensor).evaluate_tick(context)
        self.cursors[sensor] = found.cursor
        for request in found.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        return found

    def carry_out(self, request, sensor=None):
        """Run what was asked for, with the tags that the daemon gives."""
        tags = dict(request.tags) | ({"dagster/sensor_name": sensor} if sensor else {})
        return self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=request.asset_selection,
            partition_key=request.partition_key,
            tags=tags,
            run_config=QUIET,
            raise_on_error=False,
        )


@pytest.fixture
def locate(home, tiny_recipe_file):
    """Return the code location of the tiny recipe with overlays; no file stands behind it, so nothing changes it."""
    opened = []

    def make(*overlays):
        opened.append(open_instance(home))
        return Location(tiny_recipe_file, home, overlays, opened[-1])

    yield make
    for instance in opened:
        instance.dispose()
