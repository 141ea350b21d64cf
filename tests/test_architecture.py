"""The shape of the tree, as rules: imports point one way, compute knows no Dagster, loading is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPUTE = (
    "hybrid", "distillation", "scoring", "search", "evaluation", "capacity", "reporting", "tables", "bundled",
    "posttraining", "serving",
)  # fmt: skip
FORBIDDEN_IN_COMPUTE = (
    "dagster",
    "typer",
    "rich",
    "resources",
    "sensors",
    "apriel_assets.assets",
    "apriel_assets.planning",
    "apriel_assets.definitions",
    "apriel_assets.workspace",
    "apriel_assets.cli",
)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def breaks(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return sorted(
        name for name in imported(path) if any(name == f or name.startswith(f + ".") for f in forbidden)
    )


@pytest.mark.parametrize("package", COMPUTE)
def test_compute_imports_no_orchestration(package):
    files = list((ROOT / "apriel_assets" / package).rglob("*.py"))
    assert files
    assert {str(path): found for path in files if (found := breaks(path, FORBIDDEN_IN_COMPUTE))} == {}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        (
            "resources",
            ("apriel_assets.assets", "apriel_assets.planning", "apriel_assets.definitions", "sensors"),
        ),
        ("apriel_assets/assets", ("apriel_assets.definitions", "apriel_assets.planning", "sensors")),
        ("sensors", ("apriel_assets.definitions",)),
    ],
)
def test_layers_point_one_way(folder, forbidden):
    found = {str(path): breaks(path, forbidden) for path in (ROOT / folder).rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "module", ["apriel_assets.definitions", "apriel_assets.cli", "apriel_assets.workspace"]
)
def test_loading_the_code_location_imports_no_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_top_level_packages_are_ours():
    import resources
    import sensors

    for package in (resources, sensors):
        assert Path(package.__file__ or "").parent.parent == ROOT


@pytest.mark.parametrize("path", ["utils.py", "helpers.py", "common.py"])
def test_no_module_without_a_meaning(path):
    assert not list(ROOT.glob(f"apriel_assets/**/{path}"))
    assert not list(ROOT.glob(f"resources/**/{path}"))


def test_every_module_says_what_it_is_for_and_is_short():
    for folder in ("apriel_assets", "resources", "sensors"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert ast.get_docstring(ast.parse(text)), path
            assert text.count("\n") <= 300, path
