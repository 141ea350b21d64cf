"""What counts in a hash of recipe values: what can change a result, and nothing else."""

from dataclasses import replace

from apriel_assets.distillation.config import DistillConfig, SupernetConfig
from apriel_assets.scoring.config import EstimatorConfig
from apriel_assets.slices import hashed_values


def test_settings_of_speed_and_safety_do_not_count():
    for config, changes in (
        (DistillConfig(), {"save_every": 7}),
        (SupernetConfig(), {"save_every": 7}),
        (EstimatorConfig(), {"batch_size": 3}),
    ):
        other = replace(config, **changes)
        assert other != config
        assert hashed_values({"steps": {"h6": [other]}}) == hashed_values({"steps": {"h6": [config]}})


def test_everything_else_counts_at_any_depth():
    base = hashed_values({"steps": {"h6": [DistillConfig()]}})
    assert hashed_values({"steps": {"h6": [DistillConfig(steps=7)]}}) != base
    assert hashed_values({"steps": {"h6": [DistillConfig(batch_size=32)]}}) != base
    assert hashed_values({"steps": {"h7": [DistillConfig()]}}) != base
    assert base["steps"]["h6"][0]["muon_learning_rate"] == DistillConfig().muon_learning_rate
