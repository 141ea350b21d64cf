"""The teacher that ships: small, loaded by anyone, right on every task, attention spread over its layers."""

from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from apriel_assets.bundled.tokenizer import TEACHER_DIR, build_tokenizer
from apriel_assets.evaluation.tasks.problems import make_problems, task_names, verify
from apriel_assets.evaluation.tasks.specs import TaskSpec
from apriel_assets.evaluation.tasks.vocabulary import LETTERS, NUMBERS

NUM_LAYERS = 12


@pytest.fixture(scope="module")
def teacher():
    return AutoModelForCausalLM.from_pretrained(TEACHER_DIR).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TEACHER_DIR)


def draw(num_per_task, split="test"):
    return [
        p for name in task_names() for p in make_problems(TaskSpec(name=name), split, num_per_task, seed=11)
    ]


@contextmanager
def without_attention(model, layers):
    with ExitStack() as stack:
        for layer in layers:
            attention = model.model.layers[layer].self_attn
            handle = attention.register_forward_hook(
                lambda _, args, output: (torch.zeros_like(output[0]), *output[1:])
            )
            stack.callback(handle.remove)
        yield


def test_files_are_small_and_shapes_are_grouped(teacher, tokenizer):
    assert (TEACHER_DIR / "model.safetensors").stat().st_size < 4_000_000
    config = teacher.config
    assert config.model_type == "llama"
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (
        NUM_LAYERS,
        4,
        2,
    )
    assert config.vocab_size == len(tokenizer) < 128
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}


def test_saved_tokenizer_is_the_one_that_the_tasks_build(tokenizer):
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.padding_side == "left"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert (
        tokenizer("copy : b c . start at c ?").input_ids
        == build_tokenizer()("copy : b c . start at c ?").input_ids
    )


@torch.no_grad()
def test_greedy_accuracy_on_every_task(teacher, tokenizer):
    problems = draw(60)
    inputs = tokenizer([problem.prompt for problem in problems], padding=True, return_tensors="pt")
    generated = teacher.generate(**inputs, max_new_tokens=64, do_sample=False)
    texts = tokenizer.batch_decode(generated[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    right: dict[str, list[bool]] = {}
    for problem, text in zip(problems, texts, strict=True):
        right.setdefault(problem.task, []).append(verify(problem.task, problem, text))
    accuracy = {task: sum(verdicts) / len(verdicts) for task, verdicts in right.items()}
    assert min(accuracy.values()) >= 0.9, accuracy


@torch.no_grad()
def test_attention_is_spread(teacher, tokenizer):
    """One layer's attention can go, a third of them can, most cannot: the teacher is worth converting.

    Accuracy here: every letter and number of the reference trace is the most likely word, given those before.
    """
    texts = [f"{problem.prompt}{problem.trace}" for problem in draw(12, "validation")]
    inputs = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    targets = inputs.input_ids[:, 1:]
    items = torch.zeros(len(tokenizer), dtype=torch.bool)
    items[tokenizer.convert_tokens_to_ids([*LETTERS, *NUMBERS])] = True
    ends = torch.tensor([tokenizer(t).input_ids.index(tokenizer.convert_tokens_to_ids("?")) for t in texts])
    counts = items[targets] & (torch.arange(targets.shape[1]) >= ends[:, None])

    def measure(layers):
        with without_attention(teacher, layers):
            logits = teacher(input_ids=inputs.input_ids).logits[:, :-1]
        right = ((logits.argmax(-1) == targets) | ~counts).all(1).float().mean().item()
        return log_softmax(logits, -1), right

    whole, accuracy = measure([])
    singles = [measure([layer]) for layer in range(NUM_LAYERS)]
    divergence = [(s.exp() * (s - whole)).sum(-1)[counts].mean().item() for s, _ in singles]
    drops = [accuracy - single for _, single in singles]
    assert accuracy >= 0.95
    assert sum(drop > 0.3 for drop in drops) <= 1, drops
    order = sorted(range(NUM_LAYERS), key=divergence.__getitem__)
    assert measure(order[:4])[1] >= 0.9
    assert measure(order[:9])[1] <= 0.6
