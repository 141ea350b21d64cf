"""Exports: equal logits in every form, shared tensors stored once, no code of ours where none is promised, refusals."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from apriel_assets.errors import UserError
from apriel_assets.hybrid.any_checkpoint import load_any
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.export import export_all_fa, export_release
from apriel_assets.serving.shards import bytes_on_disk, copy_tree, users, write_shards
from tests.hybrid.tiny_teachers import random_ids
from tests.serving.conftest import KEPT, make_model

NAMES = ("safe", *KEPT)

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("apriel_assets", "resources", "sensors"):
            raise ImportError(f"No module named {name!r}")

sys.meta_path.insert(0, Block())
for name in [name for name in sys.modules if name.split(".")[0] == "apriel_assets"]:
    del sys.modules[name]  # what our .pth file has imported
try:
    import apriel_assets
except ImportError:
    pass
else:
    raise AssertionError("our package can still be imported")
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, out, *placements = sys.argv[1:]
ids = torch.randint(3, 61, (2, 20), generator=torch.Generator().manual_seed(0))
found = {}
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=bool(placements)).eval()
for name in placements or ["only"]:
    if placements:
        model.set_placement(name)
    with torch.no_grad():
        found[name] = model(ids).logits
    generated = model.generate(ids[:1], max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > ids.shape[1]
AutoTokenizer.from_pretrained(directory, trust_remote_code=bool(placements))
assert not any(name.split(".")[0] == "apriel_assets" for name in sys.modules)
torch.save(found, out)
"""


def logits(model, ids, placement=None):
    if placement is not None:
        model.set_placement(placement)
    with torch.no_grad():
        return model(ids).logits


def loaded_without_our_package(directory, tmp_path, *placements):
    """Load in an isolated interpreter whose imports of ours fail."""
    script, out = tmp_path / "load.py", tmp_path / "logits.pt"
    script.write_text(BLOCKED)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", str(script), str(directory), str(out), *placements]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "llama_biased", "qwen3", "mistral_windowed"])
def test_every_form_has_the_matryoshkas_logits_bit_for_bit(kind, tokenizer, tmp_path):
    model, ids = make_model(kind), random_ids(2, 20)
    model.generation_config = GenerationConfig(eos_token_id=[2, 7], max_new_tokens=9)
    export_release(model, tokenizer, tmp_path, name="tiny")
    whole = HybridForCausalLM.from_pretrained(tmp_path / "matryoshka").eval()
    for name in NAMES:
        expected = logits(model, ids, name)
        assert torch.equal(logits(whole, ids, name), expected), name
        engine = HybridForCausalLM.from_pretrained(tmp_path / "engines" / name).eval()
        assert torch.equal(logits(engine, ids), expected), name
        assert engine.mixers == tuple((mixer,) for mixer in model.placements[name])
        assert engine.generation_config.eos_token_id == [2, 7]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "all-fa").eval()
    assert type(stock) is type(model.backbone)
    assert torch.equal(logits(stock, ids), logits(model, ids, "safe"))
    assert stock.generation_config.eos_token_id == [2, 7]
    assert not list((tmp_path / "all-fa").glob("*.py"))
    assert stock.config.tie_word_embeddings == (kind == "llama_tied")


def test_placements_of_the_matryoshka_load_without_our_package(release, tmp_path):
    ids = random_ids(2, 20)
    whole = HybridForCausalLM.from_pretrained(release / "matryoshka").eval()
    found = loaded_without_our_package(release / "matryoshka", tmp_path, *NAMES)
    for name in NAMES:
        assert torch.equal(found[name], logits(whole, ids, name)), name


def test_all_fa_loads_without_our_package_and_without_remote_code(release, tmp_path):
    found = loaded_without_our_package(release / "all-fa", tmp_path)
    whole = HybridForCausalLM.from_pretrained(release / "matryoshka").eval()
    assert torch.equal(found["only"], logits(whole, random_ids(2, 20), "safe"))


def test_tokenizer_and_chat_template_come_along(tokenizer, tmp_path):
    own = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    own.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    export_release(make_model(), own, tmp_path, name="tiny")
    for directory in ("matryoshka", "engines/turbo", "all-fa"):
        found = AutoTokenizer.from_pretrained(tmp_path / directory, trust_remote_code=False)
        assert found.chat_template == own.chat_template
        assert found("a b c").input_ids == own("a b c").input_ids


def test_shared_tensors_are_stored_once(release):
    files = [path for path in release.rglob("*.safetensors") if "all-fa" not in path.parts]
    sizes = {path.stat().st_ino: path.stat().st_size for path in files}
    whole = sum(path.stat().st_size for path in (release / "matryoshka").glob("*.safetensors"))
    assert sum(sizes.values()) == whole  # three engines add nothing
    assert len(files) > len(sizes)
    assert bytes_on_disk(release / "engines") < sum(path.stat().st_size for path in files)


def test_an_engine_has_its_own_weights_and_no_others(release):
    model = HybridForCausalLM.from_pretrained(release / "matryoshka")
    for name, placement in model.placements.items():
        held = set()
        for path in (release / "engines" / name).glob("*.safetensors"):
            held |= set(load_file(path))
        mine = {f"layers.{layer}.self_attn.mixers.{mixer}." for layer, mixer in enumerate(placement)}
        assert all(any(own in tensor for own in mine) for tensor in held if ".mixers." in tensor)
        assert {tensor for tensor in model.state_dict() if ".mixers." not in tensor} <= held


def test_users_by_hand():
    model = make_model()
    names = [name for name in model.state_dict() if "layers.0.self_attn" in name or "norm.weight" in name]
    found = users(model, names, model.placements)
    assert found["backbone.model.layers.0.self_attn.mixers.fa.q_proj.weight"] == {"safe"}
    assert found["backbone.model.layers.0.self_attn.mixers.gdn.q_proj.weight"] == set(KEPT)
    assert found["backbone.model.norm.weight"] == set(NAMES)


def test_large_groups_take_several_files(tmp_path):
    model = make_model()
    shards = write_shards(model, tmp_path, model.placements, most_bytes=20_000)
    assert [shard.file for shard in shards][:2] == ["shared-00001.safetensors", "shared-00002.safetensors"]
    assert all(shard.num_bytes <= 20_000 or len(shard.tensors) == 1 for shard in shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {name: file for shard in shards for name in shard.tensors for file in [shard.file]} == index[
        "weight_map"
    ]


def test_sizes_are_numbers_in_the_config(release):
    config = json.loads((release / "engines" / "fast" / "config.json").read_text())
    assert config["architectures"] == ["HybridForCausalLM"]
    assert config["placement"] == list(KEPT["fast"])
    assert [list(own) for own in config["mixers"]] == [[mixer] for mixer in KEPT["fast"]]
    mamba = config["mixers"][2]["mamba"]
    assert (mamba["state_size"], mamba["dt_rank"]) == (8, 2)  # head size 8, hidden size 32


def test_a_copy_keeps_what_is_stored_once(release, tmp_path):
    copy_tree(release, tmp_path)
    assert bytes_on_disk(tmp_path) == bytes_on_disk(release)
    assert (tmp_path / "matryoshka" / "shared.safetensors").stat().st_ino != (
        release / "matryoshka" / "shared.safetensors"
    ).stat().st_ino


def test_a_model_without_named_placements_is_exported_under_its_own(tokenizer, tmp_path):
    model = make_model()
    model.config.placements = {}
    model.set_placement(KEPT["turbo"])
    model.prune()
    export_release(model, tokenizer, tmp_path, name="h2")
    assert sorted(path.name for path in (tmp_path / "engines").iterdir()) == ["hybrid"]
    assert not (tmp_path / "all-fa").exists()
    with pytest.raises(UserError, match="no full attention"):
        export_all_fa(model, tokenizer, tmp_path)


def test_all_fa_export_leaves_the_model_as_it_was(tokenizer, tmp_path):
    model, ids = make_model(), random_ids(1, 9)
    before = {name: logits(model, ids, name) for name in NAMES}
    export_all_fa(model, tokenizer, tmp_path)
    assert all(torch.equal(logits(model, ids, name), before[name]) for name in NAMES)


def flipped(path):
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = -tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: flipped(path / "shared.safetensors"), "SHA-256"),
        (lambda path: (path / "shared.safetensors").unlink(), "is missing"),
        (
            lambda path: shutil.copy(path / "shared.safetensors", path / "other.safetensors"),
            "does not name it",
        ),
    ],
)
@pytest.mark.parametrize("load", [HybridForCausalLM.from_pretrained, load_any])
def test_weights_that_are_not_the_configs_are_refused(change, message, load, release, tmp_path):
    copy = tmp_path / "engine"
    copy.mkdir()
    copy_tree(release / "engines" / "turbo", copy)
    load(copy)
    change(copy)
    with pytest.raises(UserError, match=message):
        load(copy)


def test_a_loaded_export_can_be_changed_and_saved(release, tmp_path):
    model = HybridForCausalLM.from_pretrained(release / "engines" / "turbo")
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(tmp_path)
    assert "weights_sha256" not in json.loads((tmp_path / "config.json").read_text())
    again = HybridForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", ["a/b", "..", "a b"])
def test_names_that_are_no_directories_are_refused(name, tokenizer, tmp_path):
    model = make_model(placements={name: KEPT["turbo"]})
    with pytest.raises(UserError, match="cannot be a directory's name"):
        export_release(model, tokenizer, tmp_path, name="tiny")
