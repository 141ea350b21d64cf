import pytest
from pydantic import TypeAdapter, ValidationError

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import (
    GatedDeltaNetConfig,
    KimiDeltaConfig,
    MambaConfig,
    MixerOptions,
    SlidingWindowConfig,
    config_from_dict,
    config_to_dict,
    pick_options,
)
from apriel_assets.hybrid.specs import TeacherSpec


@pytest.mark.parametrize(
    "make",
    [
        lambda: SlidingWindowConfig(window=1),
        lambda: MambaConfig(state_size=0),
        lambda: MambaConfig(dt_rank=-1),
        lambda: MambaConfig(conv_size=1),
        lambda: MambaConfig(dt_min=0.2, dt_max=0.1),
        lambda: GatedDeltaNetConfig(conv_size=1),
        lambda: GatedDeltaNetConfig(rate_min=0.0),
        lambda: KimiDeltaConfig(rate_min=0.2, rate_max=0.1),
        lambda: KimiDeltaConfig(output_scale=0.0),
        lambda: KimiDeltaConfig(gate_rank=3),
        lambda: TeacherSpec(model=""),
        lambda: TeacherSpec(model="somewhere", gguf_file="weights.bin"),
    ],
)
def test_bad_options_are_refused_at_birth(make):
    with pytest.raises(UserError):
        make()


def test_options_parse_from_a_recipe_and_refuse_unknown_keys():
    parse = TypeAdapter(MixerOptions).validate_python
    assert parse({"swa": {"window": 8}}).swa == SlidingWindowConfig(window=8)
    assert parse({"gdn": {"rate_max": 1}, "kda": {"gate_rank": 4}}) == MixerOptions(
        gdn=GatedDeltaNetConfig(rate_max=1.0), kda=KimiDeltaConfig(gate_rank=4)
    )
    with pytest.raises(ValidationError, match="windw"):
        parse({"swa": {"windw": 8}})


@pytest.mark.parametrize(
    ("mixer", "config"),
    [
        ("swa", SlidingWindowConfig(window=9)),
        ("mamba", MambaConfig(state_size=4)),
        ("gdn", GatedDeltaNetConfig(rate_min=0.01)),
        ("kda", KimiDeltaConfig(gate_rank=2)),
    ],
)
def test_options_survive_config_json(mixer, config):
    assert config_from_dict(mixer, config_to_dict(config)) == config


def test_options_of_a_newer_version_are_refused():
    with pytest.raises(UserError, match="novelty"):
        config_from_dict("mamba", {"novelty": 1})
    with pytest.raises(UserError, match="unknown mixer 'retnet'"):
        config_from_dict("retnet", {})


def test_pick_options_names_what_can_be_converted_to():
    assert pick_options({"mamba": MambaConfig(state_size=2)}, "mamba") == MambaConfig(state_size=2)
    with pytest.raises(UserError, match="choose from swa, gdn, kda, mamba"):
        pick_options(None, "fa")


def test_options_may_be_plain_dicts_and_what_is_left_out_has_its_defaults():
    assert pick_options({"mamba": {"state_size": 2}}, "mamba") == MambaConfig(state_size=2)
    assert pick_options({"mamba": {"state_size": 2}}, "gdn") == GatedDeltaNetConfig()
    with pytest.raises(UserError, match=r"options of mixer 'mamba': .*stat_size"):
        pick_options({"mamba": {"stat_size": 2}}, "mamba")
    with pytest.raises(UserError, match="cannot convert to 'mmba'"):
        pick_options({"mmba": {}}, "mamba")
    with pytest.raises(UserError, match="'mamba' must be MambaConfig or a dict, got SlidingWindowConfig"):
        pick_options({"mamba": SlidingWindowConfig()}, "mamba")
