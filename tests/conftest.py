"""Shared test settings and the one materialized world that orchestration tests look at."""

import itertools
import json
import os
import signal
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that spin while they wait starve each other when anything else runs: seen 171 s for 2.5 s of work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A script's shell starts what runs in the background with SIGINT ignored, Dagster gives SIGTERM the same handler, and
# programs that tests start inherit both: none of them could be ended.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path

import pytest
import torch
import yaml

# One thread a process: tiny models gain nothing from more, and the tests run in two processes.
torch.set_num_threads(1)

BUNDLED = Path(__file__).parent.parent / "apriel_assets" / "bundled" / "teacher"


def make_teacher(directory: Path, *, num_layers: int = 4, seed: int = 0) -> Path:
    """Write a tiny Llama with the bundled tokenizer, and a task that it masters: to name one letter's partner.

    Its attention and MLPs are random and matter little; its head answers w, x, y, z to a, b, c, d, and then ends.
    It knows nothing else.
    """
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
    model = LlamaForCausalLM(config)
    partners = dict(zip("abcd", "wxyz", strict=True))
    with torch.no_grad():
        embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
        embeddings.mul_(50)
        for letter, partner in partners.items():
            asked, answer = tokenizer.convert_tokens_to_ids([letter, partner])
            head[answer] += 0.3 * embeddings[asked]
            head[tokenizer.eos_token_id] += 0.3 * embeddings[answer]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    pairs = itertools.product("efghij", "klmnop", partners)
    rows = [{"prompt": f"{one} {two} {last}", "answer": partners[last]} for one, two, last in pairs]
    (directory / "partners.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def tiny_recipe(teacher: Path) -> dict:
    """A recipe with every stage of the quickstart, small enough for seconds."""
    training = {"batch_size": 4, "optimizer": "adamw", "save_every": 2}
    return {
        "name": "tiny",
        "teacher": {"model": str(teacher)},
        "tasks": {
            "train": ["recall", "arithmetic"],
            "heldout": ["recall", "arithmetic", {"file": str(teacher / "partners.jsonl")}],
            "num_traces": 24,
            "num_validation_traces": 8,
        },
        "store": {"problems": 9, "samples": 2, "max_new_tokens": 4},
        "h1": {
            "schedule": [1, 2, 3],
            "probe_steps": 1,
            "loo": {"problems": 8},
            "distill": {**training, "steps": 2},
            "sft": {"step": 2, "train": {**training, "steps": 2, "loss": "cross_entropy"}},
            "merge": {"method": "linear", "weight": 0.5},
        },
        "supernet": {
            "mixers": ["fa", "swa", "gdn", "kda"],
            "train": {**training, "steps": 2, "probe_every": 1, "probe_traces": 4, "random_probes": 1},
        },
        "costs": {"contexts": [32], "batch_size": 1, "repeats": 1, "decode_tokens": 1, "check_placements": 2},
        "search": {
            "budgets": [50.0, 90.0],
            # Costs of tiny mixers are all above full attention's, so limits make the search move.
            "allocations": {"maximum": {"fa": 2}},
            "max_candidates": 6,
            "batch": 3,
            "starts": 3,
            "beam": 2,
            "finalists": 2,
            "accuracy": {"num_problems": 2, "max_new_tokens": 4},
            "audit": {"placements": 4, "accuracy": {"num_problems": 2, "max_new_tokens": 4}},
        },
        "release": {
            "names": {90.0: "turbo"},
            "sft": {**training, "steps": 2},
            "guard": {"num_problems": 2, "max_new_tokens": 4},
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


@pytest.fixture
def apriel(monkeypatch, capsys):
    """Run the command in this process; return exit code, stdout, stderr."""

    from apriel_assets import cli

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["apriel", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


@pytest.fixture
def blank_report(monkeypatch):
    """Leave the pictures out of the report: drawing takes seconds in every run and has tests of its own."""
    from apriel_assets.reporting import report

    def page(tables, *, recipe, provenance):
        return f"<p>{recipe}: {len(tables)} tables</p>"

    monkeypatch.setattr(report, "render_report", page)
