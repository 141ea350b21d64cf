"""The UI in a real browser, on a real `dagster dev`: what a team looks at is there, and a button builds an asset."""

import shutil
import time

import pytest

from tests.ui.browsing import missing, open_page
from tests.ui.serving import serving

pytestmark = pytest.mark.services
STAGES = ["1_teacher", "2_h1", "3_supernet", "4_search", "5_release", "6_evals", "7_results"]


def sees_the_lineage(page, home):
    page.go("/asset-groups")
    text = page.wait_for(*STAGES)
    # The list of groups reads in the order of the procedure.
    places = [text.index(stage) for stage in STAGES]
    assert places == sorted(places)
    page.go("/locations/apriel_assets/asset-groups/2_h1/lineage")
    # Two nodes are called h2: their kinds tell them apart.
    page.wait_for("h1", "h2", "h3", "sft", "merge", "probes", "layer_scores", "leaderboard", "Materialized")


def sees_an_asset(page, home):
    page.go("/assets/h1/h2")
    page.wait_for(
        "Made from teacher, traces, h1/h1, h1/probes/h2.",
        "nats per token",  # a column's meaning
        "modelling",  # owner
        "PyTorch",
        "recipe: tiny",
        "Source code Open build_checkpoint",
        "loss_curve",
        "layer_map",
    )
    # The curve is drawn, not dropped by the page.
    script = "[...document.images].filter(i => i.src.startsWith('data:image/svg')).map(i => i.naturalWidth)"
    assert 240 in page.wait_for_script(f"{script}.length && {script}")


def sees_a_partition(page, home):
    page.go("/assets/evals/teacher?view=partitions&partition=recall")
    page.wait_for(
        "recall", "arithmetic", "Latest materialization", "first_rows_evals", "reverse_kl_nats", "path"
    )


def sees_a_check(page, home):
    page.go("/assets/supernet?view=checks")
    page.wait_for(
        "all_fa_equals_teacher", "This is a blocking asset check", "Passed", "largest_difference_of_logits"
    )


def materializes_an_asset(page, home):
    (artifact,) = (home / "artifacts" / "cost_model").glob("*")
    shutil.rmtree(artifact)
    page.go("/assets/cost_model")
    page.wait_for("Cost of every mixer of the supernet")
    page.press("Materialize")
    deadline = time.monotonic() + 120
    while not (artifact / "provenance.json").is_file():
        assert time.monotonic() < deadline, page.text[:2000]
        time.sleep(0.5)
    page.go("/assets/cost_model?view=events")
    page.wait_for("built_now", "true")


VIEWS = (sees_the_lineage, sees_an_asset, sees_a_partition, sees_a_check, materializes_an_asset)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_pages(world, tmp_path, subtests):
    # One test, since pytest-xdist may spread several over processes, each with a UI of its own.
    home = shutil.copytree(world, tmp_path / "home")
    with serving(home) as address, open_page(address, tmp_path / "profile") as page:
        for view in VIEWS:
            with subtests.test(view.__name__):
                view(page, home)
