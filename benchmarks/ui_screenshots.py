"""Pictures of the UI and of the report for docs/images/, from a finished home.

    apriel run --recipe quickstart --home HOME
    python -m benchmarks.ui_screenshots --home HOME [--only lineage,asset]

Needs chromium and chromium-driver, and the dev extra. The home is copied first: looking at it starts a daemon.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.ui.browsing import Page, missing, open_page
from tests.ui.serving import serving

IMAGES = Path(__file__).parent.parent / "docs" / "images"
MOST_BYTES = 300_000
SETTLE_S = 4  # until what is drawn after the text (edges, images) is there


def lineage(page: Page, home: Path) -> None:
    """The whole procedure, a node per stage."""
    page.driver.set_window_size(1500, 800)
    page.go("/asset-groups")
    page.wait_for("1_teacher", "7_results")


def asset(page: Page, home: Path) -> None:
    """The last H-k's page."""
    schedule = yaml.safe_load((home / "recipe.yaml").read_text())["h1"]["schedule"]
    page.driver.set_window_size(1500, 1500)
    page.go(f"/assets/h1/h{schedule[-1]}")
    page.wait_for("Made from", "loss_curve")


def check(page: Page, home: Path) -> None:
    """The check that the supernet's full attention is the teacher."""
    page.driver.set_window_size(1500, 800)
    page.go("/assets/supernet?view=checks")
    page.wait_for("all_fa_equals_teacher", "Passed")


def report(page: Page, home: Path) -> None:
    """The report page's first sections."""
    page.driver.set_window_size(1200, 1900)
    page.driver.get((home / "report.html").as_uri())


def report_pictures(page: Page, home: Path) -> None:
    """Its pictures."""
    page.driver.set_window_size(1200, 1000)
    page.driver.get((home / "report.html").as_uri())
    page.driver.execute_script("document.querySelector('#pictures').scrollIntoView()")


PICTURES: dict[str, Callable[[Page, Path], None]] = {
    "lineage": lineage,
    "asset": asset,
    "check": check,
    "report": report,
    "report-pictures": report_pictures,
}


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--only", default=",".join(PICTURES))
    arguments = parser.parse_args()
    if problem := missing():
        parser.error(problem)
    with tempfile.TemporaryDirectory() as directory:
        home = shutil.copytree(arguments.home, Path(directory) / "home")
        with serving(home) as address, open_page(address, Path(directory) / "profile") as page:
            for name in arguments.only.split(","):
                PICTURES[name](page, home)
                time.sleep(SETTLE_S)
                path = IMAGES / f"{name}.png"
                page.driver.save_screenshot(str(path))
                assert path.stat().st_size <= MOST_BYTES, f"{path} has {path.stat().st_size} bytes"


if __name__ == "__main__":
    main()
