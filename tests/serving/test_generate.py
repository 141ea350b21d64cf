"""`apriel generate` and `apriel export` as a user types them: answers, side by side, one-line errors."""

import io
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.release import read_release

PROMPT = "recall : b = 1 , c = 2 . ask b ?"


def plain_greedy(directory, tokenizer, num_tokens):
    """What transformers' own generate says."""
    model = HybridForCausalLM.from_pretrained(directory).eval()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    found = model.generate(ids, max_new_tokens=num_tokens, do_sample=False)
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("placement", ["safe", "turbo", "fast"])
def test_text_is_what_transformers_generates(placement, apriel, release, tokenizer):
    code, out, err = apriel("generate", PROMPT, "--model", release, "-p", placement, "-n", 12)
    assert (code, out.rstrip("\n")) == (0, plain_greedy(release / "engines" / placement, tokenizer, 12))
    assert err.startswith(f"{placement}: ")
    assert "tokens/s" in err


def test_several_placements_side_by_side(apriel, release, tokenizer):
    words = ("generate", PROMPT, "--model", release, "--compare", "turbo,all-fa", "-n", 6)
    code, out, _ = apriel(*words, "--json")
    found = {row["placement"]: row for row in json.loads(out)}
    assert code == 0
    assert found["turbo"]["text"] == plain_greedy(release / "engines" / "turbo", tokenizer, 6)
    assert found["all-fa"]["text"] == plain_greedy(release / "engines" / "safe", tokenizer, 6)
    assert all(row["tokens"] <= 6 and row["first_token_s"] > 0 for row in found.values())
    code, out, _ = apriel(*words)
    assert code == 0
    assert "turbo" in out
    assert "all-fa" in out
    assert out.count("tokens/s") == 2


def test_drafting_gives_full_attentions_text(apriel, release, tokenizer):
    code, out, err = apriel("generate", PROMPT, "--model", release, "--draft", "turbo", "-n", 12)
    assert (code, out.rstrip("\n")) == (0, plain_greedy(release / "engines" / "safe", tokenizer, 12))
    assert "of drafted tokens stood" in err


def test_a_prompt_from_standard_input_and_a_placement_mixer_by_mixer(apriel, release, tokenizer, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n"))
    code, out, _ = apriel("generate", "--model", release, "-p", "gdn,fa,kda", "-n", 8)
    assert (code, out.rstrip("\n")) == (0, plain_greedy(release / "engines" / "turbo", tokenizer, 8))


BAD = {
    "an unknown placement": (
        ("-p", "slow"),
        "no placement 'slow'; there are again, fast, safe, turbo, all-fa",
    ),
    "an unknown one to compare": (("--compare", "turbo,slow"), "no placement 'slow'"),
    "an unknown one to draft": (("--draft", "slow"), "no placement 'slow'"),
    "a pruned mixer": (("-p", "gdn,gdn,kda"), "layer 1 holds no 'gdn', only fa, swa: it was pruned away"),
    "too few mixers": (("-p", "gdn,fa"), "2 mixers for 3 layers"),
    "a prompt beyond the context": (("-n", "250"), "250 more were asked for, the context is 256"),
    "no tokens": (("-n", "-1"), "max_new_tokens=-1 must be at least 1"),
    "two ways at once": (
        ("-p", "safe", "--draft", "turbo"),
        "give one of --placement, --compare and --draft",
    ),
    "a negative temperature": (("-t", "-1"), "temperature=-1.0 must be 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, apriel, release):
    arguments, message = BAD[case]
    code, out, err = apriel("generate", PROMPT, "--model", release, *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


def test_models_of_a_home_by_name(apriel, world):
    code, out, _ = apriel("generate", PROMPT, "--home", world, "-n", 4, "--compare", "turbo,all-fa", "--json")
    assert (code, [row["placement"] for row in json.loads(out)]) == (0, ["turbo", "all-fa"])
    for name in ("h2", "tiny:turbo", "teacher", "b90"):
        code, out, _ = apriel("generate", PROMPT, "--home", world, "--model", name, "-n", 4, "--json")
        assert (code, json.loads(out)[0]["placement"]) == (0, name.removeprefix("tiny:"))
    code, _, err = apriel("generate", PROMPT, "--home", world, "--model", "turbos")
    assert code == 2
    assert "no directory and no model 'turbos'" in err
    assert "nearest first: turbo" in err


def test_export_of_what_a_home_releases_has_a_card_with_its_figures(apriel, world, tmp_path):
    out = tmp_path / "out"
    code, text, _ = apriel("export", out, "--home", world, "--json")
    done = json.loads(text)
    assert (code, done["name"], set(done["placements"])) == (0, "tiny", {"safe", "turbo", "turbo-50"})
    turbo = done["vllm_cache"]["turbo"]  # FA, GDN, FA, SWA
    assert (turbo["groups"], turbo["layers_per_group"], turbo["padding_layers"]) == (4, 1, 0)
    release = read_release(out)
    assert release.placements[0] == "safe"
    assert all(release.throughput[own] for own in release.placements)
    card = (out / "matryoshka" / "README.md").read_text()
    assert card.count("| recall |") == 3
    assert card.count("| `turbo` | decode |") >= 1
    assert "artifacts/release/sft/" in card
    assert 'placement="turbo' in card
    for row in release.throughput["turbo"]:
        assert f"{row['tokens_per_s']:.0f}" in card
    ids = torch.tensor([[1, 5, 6]])
    stock = AutoModelForCausalLM.from_pretrained(out / "all-fa").eval()
    engine = HybridForCausalLM.from_pretrained(out / "engines" / "safe").eval()
    assert torch.equal(stock(ids).logits, engine(ids).logits)
    code, _, err = apriel("export", out, "--home", world)
    assert code == 2
    assert "is there already and not empty" in err


def test_export_of_a_checkpoint_from_elsewhere(apriel, release, tmp_path):
    code, text, _ = apriel(
        "export", tmp_path / "again", "--model", release, "--name", "again", "--home", tmp_path
    )
    assert code == 0
    assert "turbo in vLLM: caches in 3 groups of 1 layers, 0 of them padding; " in text
    assert read_release(tmp_path / "again").models["again-turbo"] == "turbo"
    assert "Not measured." in (tmp_path / "again" / "matryoshka" / "README.md").read_text()
    code, _, err = apriel("export", tmp_path / "bad", "--model", release, "--name", "a/b", "--home", tmp_path)
    assert code == 2
    assert "cannot be a directory's name" in err
    assert not (tmp_path / "bad").exists()
    assert not list(tmp_path.glob(".*"))
    code, _, err = apriel("generate", "b", "--home", tmp_path / "nothing")
    assert code == 2
    assert "no --model given, and no results in" in err
