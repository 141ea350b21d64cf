"""Another tokenizer, or another chat template, is told by what a text becomes, not by its name or its size."""

import json

import pytest

from apriel_assets.errors import UserError
from apriel_assets.evaluation.own_tokenizer import check_directory_tokenizer, has_tokenizer, tokenizer_digest


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Save the tokenizer after a change of its file, and return the directory."""

    def save(name, change=lambda content: None, template=None):
        tokenizer.save_pretrained(tmp_path / name)
        file = tmp_path / name / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        if template:
            (tmp_path / name / "chat_template.jinja").write_text(template)
        return tmp_path / name

    return save


def swap(content):
    words = content["model"]["vocab"]
    words["b"], words["c"] = words["c"], words["b"]


def test_the_same_tokenizer_is_taken_however_it_pads(tokenizer, saved, tmp_path):
    check_directory_tokenizer(saved("same"), tokenizer, "the teacher")
    check_directory_tokenizer(tmp_path, tokenizer, "the teacher")  # it comes with none
    assert has_tokenizer(tmp_path / "same")
    assert not has_tokenizer(tmp_path)
    check_directory_tokenizer(
        saved("padding", lambda content: content.update(padding=None)), tokenizer, "the teacher"
    )


def test_two_words_that_changed_places_are_another_tokenizer(tokenizer, saved):
    with pytest.raises(
        UserError, match=r"that of the teacher is not the tokenizer of .*: tokens and rules differ"
    ):
        check_directory_tokenizer(saved("words", swap), tokenizer, "the teacher")


def test_another_chat_template_is_refused(tokenizer, saved):
    with pytest.raises(UserError, match="chat template differ"):
        check_directory_tokenizer(saved("chat", template="{{ messages }}"), tokenizer, "the teacher")


def test_the_digest_tells_them_apart(tokenizer, saved):
    from transformers import AutoTokenizer

    digests = [
        tokenizer_digest(AutoTokenizer.from_pretrained(path))
        for path in (
            saved("one"),
            saved("two"),
            saved("words", swap),
            saved("chat", template="{{ messages }}"),
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
