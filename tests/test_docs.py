"""Documentation that is true: examples run, links lead somewhere, every asset has a page, README names real files."""

import re
from pathlib import Path

import pytest

from apriel_assets.definitions import plan_assets
from apriel_assets.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    for path in re.findall(
        r"`((?:apriel_assets|resources|sensors|tests|benchmarks|docs)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path


def test_every_asset_has_a_page():
    text = "\n".join(page.read_text() for page in ROOT.glob("docs/*.md"))
    for key in plan_assets(load_recipe("quickstart")):
        family = re.sub(r"/h\d+$", "/h<k>", key)
        family = re.sub(r"^(evals|throughput)/.*", r"\1/<model>", family)
        family = re.sub(r"^costs/.*", "costs/<mixer>", family)
        family = {"h1/probes/h<k>": "h1/probes/"}.get(family, family)
        assert f"`{family}" in text, key


def test_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index
