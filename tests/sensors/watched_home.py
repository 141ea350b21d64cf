"""A home under a real daemon's care, and what happens to it."""

import time
from collections import Counter

import dagster as dg
import yaml

from resources.home import open_instance


class World:
    """The home under the daemon's care, and what happens to it."""

    def __init__(self, home, recipe, services):
        self.home, self.recipe, self.services = home, recipe, services
        self.instance = open_instance(home)
        self._seen = {run.run_id for run in self.instance.get_runs()}

    def edit(self, content, comment=""):
        self.recipe.write_text(comment + yaml.safe_dump(content))
        assert self.services.reload()["locationOrLoadError"]["__typename"] == "RepositoryLocation"

    def wait(self, condition, seconds=300, pause_s=0.3):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"{self.ticks('reconcile')}\n{self.services.logs()}"
            time.sleep(pause_s)

    def until_quiet(self, failures=0):
        """Wait until the sensor has said twice, with nothing under way, that all is up to date.

        Args:
            failures: how many runs may have failed.
        """
        since = time.time()

        def all_well():
            new = [run for run in self.instance.get_runs(limit=20) if run.run_id not in self._seen]
            failed = [run.run_id for run in new if run.status.value == "FAILURE"]
            assert len(failed) <= failures, f"{failed}\n{self.services.logs()}"
            return all(run.is_finished for run in new)

        self.wait(
            lambda: (
                all_well()
                and len(
                    [
                        tick
                        for tick in self.ticks("reconcile")[:3]
                        if tick["timestamp"] > since and tick["skipReason"] == "everything is up to date"
                    ]
                )
                >= 2
            )
        )

    def ticks(self, sensor):
        query = """query ($of: SensorSelector!) {sensorOrError(sensorSelector: $of) {... on Sensor {
            sensorState {ticks(limit: 5) {timestamp status skipReason error {message}}}}}}"""
        of = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "apriel_assets",
            "sensorName": sensor,
        }
        return self.services.query(query, of=of)["sensorOrError"]["sensorState"]["ticks"]

    def new_materializations(self, failures=0):
        """Return (asset, partition) of everything that was materialized since the last call, by any run.

        Args:
            failures: how many runs must have failed, all others having ended well; None: it does not matter.
        """
        runs = [run for run in self.instance.get_runs() if run.run_id not in self._seen]
        self._seen |= {run.run_id for run in runs}
        ended = Counter(run.status.value for run in runs)
        if failures is not None:
            assert ended["FAILURE"] == failures, self.services.logs()
            assert set(ended) <= {"SUCCESS", "FAILURE"}, self.services.logs()
        events = [
            event.asset_materialization
            for run in runs
            for event in self.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        ]
        return [(own.asset_key.to_user_string(), own.partition) for own in events if own]

    def built(self):
        return {path.parent.parent for path in self.home.glob("artifacts/**/provenance.json")}

    def stale_in_ui(self):
        query = "{assetNodes {assetKey {path} staleStatus isPartitioned}}"
        nodes = self.services.query(query)["assetNodes"]
        return {
            "/".join(node["assetKey"]["path"])
            for node in nodes
            if node["staleStatus"] != "FRESH" and not node["isPartitioned"]
        } - {"recipe"}
