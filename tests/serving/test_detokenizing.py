"""Text as it comes: the pieces add up to the whole, and nothing of a stop string gets out."""

import random

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace, Sequence
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from apriel_assets.errors import UserError
from apriel_assets.serving.detokenizing import TextStream


@pytest.fixture(scope="module")
def byte_tokenizer():
    """A token per byte, so that a character may need several."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def pieces(tokenizer, text, stop=()):
    stream = TextStream(tokenizer, stop)
    found = [stream.push(token) for token in tokenizer(text, add_special_tokens=False).input_ids]
    return [*found, stream.finish()], stream


@pytest.mark.parametrize("text", ["plain", "Grüße aus Köln, 東京 🙂!", " a  b ", ""])
def test_pieces_add_up_and_are_whole_characters(byte_tokenizer, text):
    found, _ = pieces(byte_tokenizer, text)
    assert "".join(found) == text
    assert all("\ufffd" not in piece for piece in found)


def test_words_keep_their_spaces(tokenizer):
    found, _ = pieces(tokenizer, "b c d = 1")
    assert "".join(found) == "b c d = 1"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(["END"], "one two "), (["two", "END"], "one "), (["ENDS"], "one two END END three"), (["o"], "")],
)
def test_stop_strings_over_several_tokens(byte_tokenizer, stop, expected):
    text = "one two END END three"
    found, stream = pieces(byte_tokenizer, text, stop)
    assert "".join(found) == expected
    assert stream.stopped == (expected != text)


@pytest.fixture(scope="module")
def fallback_tokenizer():
    """Characters, and bytes for all others, as Llama 2 and Mistral have them: the text of a run of bytes may change."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc"]
    vocab = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = Sequence([Replace("▁", " "), ByteFallback(), Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_bytes_that_make_earlier_ones_invalid_end_no_stream(fallback_tokenizer):
    stream = TextStream(fallback_tokenizer)
    a, bytes_of_a, invalid = (
        fallback_tokenizer.convert_tokens_to_ids(own) for own in ("a", "<0x61>", "<0xFF>")
    )
    found = [stream.push(token) for token in (a, bytes_of_a, invalid, invalid, a, a)]
    assert "".join(found).startswith("aa")
    assert "".join(found).endswith("aa")


def test_any_tokens_of_bytes_are_text(fallback_tokenizer):
    lot = random.Random(0)
    for _ in range(300):
        stream = TextStream(fallback_tokenizer, ["zz"])
        parts = [stream.push(lot.randrange(len(fallback_tokenizer))) for _ in range(40)]
        "".join([*parts, stream.finish()]).encode()


def test_what_may_begin_a_stop_string_is_held_back(byte_tokenizer):
    stream = TextStream(byte_tokenizer, ["<end>"])
    out = [stream.push(token) for token in byte_tokenizer("a<en").input_ids]
    assert "".join(out) == "a"
    assert stream.finish() == "<en"


def test_a_tokenizer_without_a_fast_form_is_refused():
    with pytest.raises(UserError, match="no fast tokenizer"):
        TextStream(object())
