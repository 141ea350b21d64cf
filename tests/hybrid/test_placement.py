import subprocess
import sys

import pytest

from apriel_assets.errors import UserError
from apriel_assets.hybrid.placement import check_layers, check_placement, layer_map, replace_layers


def test_replace_layers_changes_only_those():
    assert replace_layers(("fa", "fa", "swa", "fa"), [3, 0], "mamba") == ("mamba", "fa", "swa", "mamba")


@pytest.mark.parametrize("layers", [[4], [-1], [0, 17]])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(UserError, match="layers 0 to 3"):
        replace_layers(("fa",) * 4, layers, "mamba")


def test_check_layers_sorts_and_drops_duplicates():
    assert check_layers([2, 0, 2], 3) == (0, 2)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (("fa", "fa"), "2 mixers for 3 layers"),
        (("fa", "fa", "attention"), "layer 2: unknown mixer 'attention'"),
        (("fa", "mamba", "fa"), "layer 1 holds no 'mamba'"),
        ("fa fa fa", "one string"),
    ],
)
def test_bad_placements_are_refused(placement, message):
    with pytest.raises(UserError, match=message):
        check_placement(placement, 3, [("fa", "swa")] * 3)


def test_layer_map_is_rows_of_ten_letters():
    assert layer_map(("fa",) * 9 + ("mamba", "swa", "fa")) == "F F F F F F F F F M\nS F"


@pytest.mark.parametrize("module", ["placement", "config", "specs"])
def test_recipe_modules_load_without_torch(module):
    code = f"import apriel_assets.hybrid.{module}, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
