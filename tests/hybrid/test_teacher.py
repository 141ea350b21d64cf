import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from apriel_assets.errors import UserError
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.hybrid.specs import TeacherSpec
from apriel_assets.hybrid.teacher import BUNDLED, check_teacher, load_teacher, teacher_facts
from tests.hybrid.tiny_teachers import VOCAB_SIZE, random_ids, tiny_teacher

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def tiny_tokenizer(num_words=VOCAB_SIZE, **special):
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, num_words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def directory(tmp_path):
    tiny_teacher().save_pretrained(tmp_path)
    tiny_tokenizer(eos_token="<eos>").save_pretrained(tmp_path)
    return tmp_path


def test_a_directory_loads_ready_to_generate(directory):
    model, tokenizer = load_teacher(TeacherSpec(model=str(directory)))
    assert not model.training
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<eos>", "left")
    ids = random_ids(1, 5)
    assert torch.equal(model(ids).logits, tiny_teacher()(ids).logits)


def test_dtype_is_the_specs(directory):
    model, _ = load_teacher(TeacherSpec(model=str(directory), dtype="bfloat16"))
    assert model.dtype == torch.bfloat16


def test_the_bundled_teacher_is_itself_as_a_hybrid():
    model, tokenizer = load_teacher(TeacherSpec(model="bundled"))
    ids = torch.randint(0, len(tokenizer), (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(HybridForCausalLM.from_teacher(model)(ids).logits, model(ids).logits)


def test_facts_are_the_models(directory):
    facts = teacher_facts(TeacherSpec(model=str(directory)))
    expected = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "head_size": 8}
    assert expected.items() <= facts.items()
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["vocab_size"] == VOCAB_SIZE
    assert facts["num_parameters"] == sum(p.numel() for p in tiny_teacher().parameters())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_digest_covers_config_weights_and_tokenizer(directory, name):
    spec = TeacherSpec(model=str(directory))
    before = teacher_facts(spec)["digest"]
    assert teacher_facts(spec)["digest"] == before
    content = bytearray((directory / name).read_bytes())
    content += b" "
    (directory / name).write_bytes(content)
    assert teacher_facts(spec)["digest"] != before


def test_digest_does_not_depend_on_the_place(directory, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(directory, elsewhere)
    digests = {teacher_facts(TeacherSpec(model=str(path)))["digest"] for path in (directory, elsewhere)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TeacherSpec(model="nobody/nothing-of-that-name"), "check the name and the network"),
        (TeacherSpec(model="/no/such/directory"), "no such directory"),
        (TeacherSpec(model=str(BUNDLED / "config.json")), "is a file, but no .gguf"),
        (TeacherSpec(model=str(BUNDLED), gguf_file="absent.gguf"), "absent.gguf is not in"),
        (TeacherSpec(model=str(BUNDLED.parent)), "no config.json"),
    ],
)
@pytest.mark.parametrize("function", [load_teacher, teacher_facts])
def test_what_is_not_there_is_one_line(spec, message, function):
    with pytest.raises(UserError, match=message) as caught:
        function(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_files_are_one_line(directory, file):
    content = (directory / file).read_bytes()
    (directory / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"can(not)? be read") as caught:
        load_teacher(TeacherSpec(model=str(directory)))
    assert "\n" not in str(caught.value)


def test_teacher_without_attention_is_refused_by_its_class(tmp_path):
    config = MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="MambaForCausalLM"):
        teacher_facts(TeacherSpec(model=str(tmp_path)))


def test_tokenizer_beyond_the_embedding_is_refused(directory):
    tiny_tokenizer(VOCAB_SIZE + 1, eos_token="<eos>").save_pretrained(directory)
    with pytest.raises(UserError, match="62 ids, the embedding of LlamaForCausalLM only 61 rows"):
        load_teacher(TeacherSpec(model=str(directory)))


def test_tokenizer_with_nothing_to_pad_with_is_refused(directory):
    tiny_tokenizer().save_pretrained(directory)
    with pytest.raises(UserError, match="neither a pad nor an eos token"):
        load_teacher(TeacherSpec(model=str(directory)))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Gemma2Config(**SIZES, final_logit_softcapping=0.5, query_pre_attn_scalar=8), "Gemma2ForCausalLM"),
        (GraniteConfig(**SIZES, logits_scaling=3.0), "GraniteForCausalLM"),
    ],
)
def test_logits_that_are_not_the_heads_are_refused_by_name(config, name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # logits large enough for a cap to show
        model.get_output_embeddings().weight.mul_(50)
    with pytest.raises(UserError, match=f"the logits of {name} are not its LM head"):
        check_teacher(model)
