"""Checkpoints from anywhere: whatever their files hold, a model or one line, and no more memory than they are worth."""

import contextlib
import json
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest
from gguf import GGUFWriter
from hypothesis import strategies as st

from apriel_assets.errors import UserError
from apriel_assets.hybrid.any_checkpoint import load_any
from apriel_assets.hybrid.gguf_header import check_gguf
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.teacher import load_teacher, teacher_facts
from apriel_assets.printable import printable
from tests.fuzzing import fuzz, lengths, mutated
from tests.hybrid.test_teacher import tiny_tokenizer
from tests.hybrid.tiny_teachers import tiny_teacher

MOST_MORE_BYTES = 1 << 30
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    tiny_teacher().save_pretrained(directory)
    tiny_tokenizer(eos_token="<eos>").save_pretrained(directory)
    return directory


@pytest.fixture
def directory(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def loads_or_is_refused(path):
    """Load a directory in both ways; return what refused it, or None."""
    refused = None
    before = psutil.Process().memory_info().rss
    for load in (lambda: load_teacher(TeacherSpec(model=str(path))), lambda: load_any(path)):
        try:
            load()
        except UserError as error:
            refused = str(error)
    assert psutil.Process().memory_info().rss - before < MOST_MORE_BYTES
    assert refused is None or printable(refused) == refused
    return refused


@pytest.mark.parametrize("name", JSON_FILES)
@lengths(short=6, long=3_000)
def test_settings_of_any_kind(name, num_inputs, whole, directory, no_network):
    content = json.loads((whole / name).read_text())

    def check(changed):
        (directory / name).write_text(json.dumps(changed))
        loads_or_is_refused(directory)

    fuzz(num_inputs, mutated(content, most=2).filter(_is_json), check)


def _is_json(content):
    try:
        return bool(json.dumps(content)) or True
    except (TypeError, ValueError):  # keys of several kinds, numbers of thousands of digits
        return False


@lengths(short=12, long=10_000)
def test_bytes_of_weights_and_their_header(num_inputs, whole, directory, no_network):
    name = "model.safetensors"
    content = (whole / name).read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    at = st.one_of(st.integers(0, 9), st.integers(0, header), st.integers(0, len(content) - 1))
    edits = st.lists(st.tuples(at, st.binary(min_size=1, max_size=8)), min_size=1, max_size=3)

    def check(edits):
        changed = bytearray(content)
        for start, new in edits:
            changed[start : start + len(new)] = new
        (directory / name).write_bytes(changed)
        loads_or_is_refused(directory)

    fuzz(num_inputs, edits, check)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**9}, "cannot hold"),
        ({"hidden_size": 10**6}, "cannot hold"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"head_dim": 10**15}, "cannot|read"),
        ({"intermediate_size": 49}, "mismatched"),
        ({"num_hidden_layers": 4}, "missing"),
        ({"vocab_size": 10**400}, "vocab_size"),
        ({"attn_implementation": "somebody/kernel"}, "code of somebody/kernel"),
        ({"backbone": {"_attn_implementation": "somebody/kernel"}}, "code of somebody/kernel"),
        ({"model_type": "apriel_hybrid", "backbone": {"num_hidden_layers": 10**9}}, "num_hidden_layers"),
        ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "custom code"),
    ],
)  # fmt: skip
def test_what_asks_for_too_much_or_leads_elsewhere_is_refused(changes, message, directory, no_network):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    (directory / "evil.py").write_text("raise SystemExit('code that came with a checkpoint ran')")
    for load in (lambda: load_teacher(TeacherSpec(model=str(directory))), lambda: load_any(directory)):
        with pytest.raises(UserError, match=message):
            load()
    assert loads_or_is_refused(directory)


def test_an_adapter_leads_to_no_other_model(directory, no_network):
    (directory / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "gpt2", "peft_type": "LORA"})
    )
    assert "adapter" in (loads_or_is_refused(directory) or "")


def test_an_index_names_files_beside_it_alone(directory, no_network):
    outside = directory.parent / "outside.safetensors"
    (directory / "model.safetensors").rename(outside)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no file beside it" in (loads_or_is_refused(directory) or "")


def test_pickled_weights_are_not_read(directory, no_network):
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    assert "safetensors" in (loads_or_is_refused(directory) or "")


def test_weights_that_are_missing_are_not_made_up(directory):
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys: .*q_proj"):
        load_teacher(TeacherSpec(model=str(directory)))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A tiny Llama as llama.cpp's converter writes it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model = tiny_teacher()
    writer = GGUFWriter(str(path), "llama")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    words = [
        "<pad>",
        "<|endoftext|>",
        "<eos>",
        "w",
        "3",
        "w3",
        *(f"x{i}" for i in range(6, config.vocab_size)),
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(["w 3"])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    names = {
        "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        block = f"blk.{parts[2]}." if "layers" in parts else ""
        writer.add_tensor(f"{block}{names[parts[-2]]}.weight", tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_whole_gguf_file_loads(gguf):
    check_gguf(gguf)
    facts = teacher_facts(TeacherSpec(model=str(gguf)))
    assert facts["num_layers"] == 3
    model, _ = load_teacher(TeacherSpec(model=str(gguf)))
    assert model.config.hidden_size == 32


@lengths(short=30, long=10_000)
def test_bytes_of_a_gguf_header(num_inputs, gguf, tmp_path, no_network):
    content, path = gguf.read_bytes(), tmp_path / "changed.gguf"
    header = len(content) - 4 * sum(own.numel() for own in tiny_teacher().state_dict().values())
    numbers = st.sampled_from([0, 1, 9, 2**31, 2**32 - 1, 2**60, 2**64 - 1])
    words = st.one_of(
        numbers.map(lambda number: struct.pack("<Q", number)), st.binary(min_size=1, max_size=4)
    )
    edits = st.lists(st.tuples(st.integers(4, header), words), min_size=1, max_size=3)

    def check(edits):
        changed = bytearray(content)
        for start, new in edits:
            changed[start : start + len(new)] = new
        path.write_bytes(changed[: len(content)])
        before = psutil.Process().memory_info().rss
        with contextlib.suppress(UserError):
            load_teacher(TeacherSpec(model=str(path)))
        assert psutil.Process().memory_info().rss - before < MOST_MORE_BYTES

    fuzz(num_inputs, edits, check)


def test_a_gguf_array_that_is_not_there_is_refused_at_once(gguf, tmp_path):
    content = bytearray(gguf.read_bytes())
    at = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    for item, count in ((8, 2**60), (4, 2**60), (9, 1), (77, 1)):
        content[at : at + 4] = struct.pack("<I", item)
        content[at + 4 : at + 12] = struct.pack("<Q", count)
        (tmp_path / "long.gguf").write_bytes(content)
        with pytest.raises(UserError, match="no whole GGUF file"):
            check_gguf(tmp_path / "long.gguf")
    (tmp_path / "long.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="no whole GGUF file"):
        check_gguf(tmp_path / "long.gguf")


def test_a_gguf_file_within_a_directory_stays_within(gguf):
    inside = gguf.parent / "inside"
    inside.mkdir()
    for name in ("../tiny.gguf", str(Path(gguf).absolute())):
        with pytest.raises(UserError, match="is not in"):
            teacher_facts(TeacherSpec(model=str(inside), gguf_file=name))
