"""From messages to tokens: a chat template is a program that came with a checkpoint."""

import pytest
from transformers import AutoTokenizer

from apriel_assets.errors import UserError
from apriel_assets.serving.prompts import chat_prompt, completion_prompt
from tests.conftest import BUNDLED

SAID = [{"role": "user", "content": "a = 1"}, {"role": "user", "content": "ask a ?"}]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(BUNDLED)


def test_without_a_template_each_message_is_a_line(tokenizer):
    assert chat_prompt(tokenizer, SAID) == completion_prompt(tokenizer, "a = 1\nask a ?")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for own in messages %}{{ own.content + 1 }}{% endfor %}", "str"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ [1].__class__.__base__ }}", "unsafe"),
        ("{% for own in %}", "Expected"),
    ],
    ids=["refuses", "wrong types", "nothing there", "attack", "no template"],
)
def test_a_template_that_fails_is_an_error_of_the_request(template, message, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"chat template of the model does not take .*{message}"):
        chat_prompt(tokenizer, SAID)


def test_what_a_template_says_is_not_endless(tokenizer):
    tokenizer.chat_template = "{{ raise_exception(messages[0].content * 10000) }}"
    with pytest.raises(UserError) as refused:
        chat_prompt(tokenizer, SAID)
    assert len(str(refused.value)) < 400
