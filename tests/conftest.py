"""Shared test settings and the one materialized world that orchestration tests look at."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin while they wait starve each other when anything else runs: seen 171 s for 2.5 s of work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from pathlib import Path

import pytest
import torch
import yaml

# One thread a process: tiny models gain nothing from more, and the tests run in two processes.
torch.set_num_threads(1)

BUNDLED = Path(__file__).parent.parent / "apriel_assets" / "bundled" / "teacher"


def make_teacher(directory: Path, *, num_layers: int = 4, seed: int = 0) -> Path:
    """Write a tiny random Llama with the bundled tokenizer; it knows nothing but has every part."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_recipe(teacher: Path) -> dict:
    """A recipe with every stage of the quickstart, small enough for seconds."""
    training = {"batch_size": 4, "optimizer": "adamw", "save_every": 2}
    return {
        "name": "tiny",
        "teacher": {"model": str(teacher)},
        "tasks": {
            "train": ["recall", "arithmetic"],
            "heldout": ["recall", "arithmetic"],
            "num_traces": 24,
            "num_validation_traces": 8,
        },
        "store": {"problems": 4, "samples": 2, "max_new_tokens": 8},
        "h1": {
            "schedule": [1, 2, 3],
            "probe_steps": 1,
            "loo": {"problems": 8},
            "distill": {**training, "steps": 2},
            "sft": {"step": 2, "train": {**training, "steps": 2, "loss": "cross_entropy"}},
            "merge": {"method": "linear", "weight": 0.5},
        },
        "evals": {
            "tasks": ["recall", "arithmetic"],
            "accuracy": {"num_problems": 4, "max_new_tokens": 8},
            "throughput": {"contexts": [16, 32], "batch_size": 2, "decode_tokens": 2, "repeats": 1},
        },
    }


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_recipe_file(tiny_teacher, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tiny_teacher)))
    return path


@pytest.fixture(scope="session")
def world(tiny_recipe_file, tmp_path_factory) -> Path:
    """A home in which the tiny recipe was run to the end. Tests copy it before they change anything."""
    from apriel_assets.workspace import open_workspace

    home = tmp_path_factory.mktemp("world")
    with open_workspace(str(tiny_recipe_file), home, write=True) as workspace:
        workspace.run()
    return home
