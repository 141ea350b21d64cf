"""Answers equal those of lm-eval's own HF adapter, and an interrupted eval goes on from what it kept."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval_files import write_tasks

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from apriel_assets.errors import UserError
from apriel_assets.evaluation import lm_eval_generation, lm_eval_model, log_likelihoods
from apriel_assets.evaluation.kept_answers import KeptAnswers
from apriel_assets.evaluation.lm_eval_adapter import load_tasks, run_loaded
from apriel_assets.evaluation.lm_eval_config import LmEvalTask
from apriel_assets.evaluation.lm_eval_model import AprielLM
from apriel_assets.hybrid.model import HybridForCausalLM

ROOT = Path(__file__).parent.parent.parent
KINDS = ["local_completion", "local_choice", "local_rolling", "local_writing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"), rows=11)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def llama(tiny_llama):
    return tiny_llama(seed=2, max_position_embeddings=192)


@pytest.fixture(scope="module")
def hybrids(llama):
    mixed = HybridForCausalLM.from_teacher(llama)
    for layer, mixer in enumerate(("mamba", "gdn")):
        mixed.convert([layer], mixer, seed=1, keep=True)
    mixed.set_placement(("mamba", "gdn"))
    return {"all_fa": HybridForCausalLM.from_teacher(llama), "mixed": mixed}


def requests(kind, *arguments):
    return [Instance(kind, {}, own, i, ("t", i, 1)) for i, own in enumerate(arguments)]


@pytest.mark.parametrize("placement", ["all_fa", "mixed"])
@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("least_saved", [1, 10**9])
def test_equals_the_harness_own_adapter(
    hybrids, tokenizer, folder, task, placement, least_saved, monkeypatch
):
    """With shared prefills (1) and without (10**9); each request's answer and each metric."""
    monkeypatch.setattr(log_likelihoods, "least_saved", lambda model: least_saved)
    asked = LmEvalTask(task=task, include_path=folder)
    model = hybrids[placement]
    ours = run_loaded(load_tasks(tokenizer, asked, seed=0), AprielLM(model, tokenizer=tokenizer), asked)
    theirs_lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=192)
    theirs = run_loaded(load_tasks(tokenizer, asked, seed=0), theirs_lm, asked)
    figures = {k: v for k, v in theirs["results"][task].items() if isinstance(v, float)}
    assert figures
    assert {k: ours["results"][task][k] for k in figures} == pytest.approx(figures, rel=1e-4, abs=1e-4)
    for mine, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
        assert mine["doc_hash"] == other["doc_hash"]
        for (one,), (another,) in zip(mine["resps"], other["resps"], strict=True):
            if isinstance(one, tuple):
                assert one[1] == another[1]
                one, another = one[0], another[0]
            assert one == (another if isinstance(another, str) else pytest.approx(another, abs=1e-4))


@torch.no_grad()
def test_log_likelihood_by_the_definition(hybrids, llama, tokenizer):
    lm = AprielLM(hybrids["all_fa"], tokenizer=tokenizer)
    pairs = [
        ("copy : b c d", " . start at c"),
        ("copy : b c d", " ."),
        ("", "copy : b"),
        ("so", " the answer is"),
    ]
    found = lm.loglikelihood(requests("loglikelihood", *pairs))
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        start = tokenizer(context).input_ids if context else [tokenizer.bos_token_id]
        target = tokenizer(continuation, add_special_tokens=False).input_ids
        logits = llama(torch.tensor([start + target])).logits[0, len(start) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(target)[:, None]).sum()
        assert total == pytest.approx(expected.item(), abs=1e-4)
        assert greedy == (logits.argmax(-1).tolist() == target)


def test_rolling_takes_windows_that_fit(hybrids, tokenizer):
    text = " ".join(["so we get 3 then 4 ."] * 60)  # 420 tokens, 192 positions
    ours = AprielLM(hybrids["all_fa"], tokenizer=tokenizer).loglikelihood_rolling(
        requests("rolling", (text,))
    )
    theirs = HFLM(pretrained=hybrids["all_fa"], tokenizer=tokenizer, max_length=192, batch_size=2)
    assert ours == pytest.approx(theirs.loglikelihood_rolling(requests("rolling", (text,))), abs=1e-3)
    assert len(tokenizer(text).input_ids) > 2 * 192


def test_stop_strings_end_a_text_before_the_first_of_them(hybrids, tokenizer):
    lm = AprielLM(hybrids["all_fa"], tokenizer=tokenizer)
    whole = lm.generate_until(requests("g", ("copy : b c", {"until": [], "max_gen_toks": 12})))[0]
    words = whole.split()
    assert len(words) > 4
    stop = words[3]
    cut = lm.generate_until(requests("g", ("copy : b c", {"until": [stop], "max_gen_toks": 12})))[0]
    assert cut == whole.split(stop)[0]


def test_samples_hang_on_seed_and_request_alone(hybrids, tokenizer):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = [(f"copy : b {number}", settings) for number in range(5)]

    def write(seed, chosen, batch_size):
        lm = AprielLM(hybrids["all_fa"], tokenizer=tokenizer, seed=seed, batch_size=batch_size)
        return lm.generate_until(requests("g", *chosen))

    first = write(0, asked, 2)
    assert write(0, asked, 5) == first
    assert write(0, asked[3:], 2) == first[3:]
    assert write(1, asked, 2) != first
    twice = write(0, [asked[0], asked[0]], 2)
    assert twice[0] != twice[1], "the same request again is another sample"


def test_what_does_not_fit_is_refused_in_one_line_or_cut_on_the_left(hybrids, tokenizer):
    long = " ".join(["3"] * 194)
    lm = AprielLM(hybrids["all_fa"], tokenizer=tokenizer)
    with pytest.raises(
        UserError, match=r"195 \+ 1 tokens is longer than the model's 192 positions; give fewer"
    ):
        lm.loglikelihood(requests("l", (long, " 4")))
    with pytest.raises(UserError, match="195 tokens and 8 to write are more than the model's 192 positions"):
        lm.generate_until(requests("g", (long, {"until": [], "max_gen_toks": 8})))
    cutting = AprielLM(hybrids["all_fa"], tokenizer=tokenizer, truncation=True)
    theirs = HFLM(pretrained=hybrids["all_fa"], tokenizer=tokenizer, max_length=192)
    mine = cutting.loglikelihood(requests("l", (long, " 4")))
    assert mine[0][0] == pytest.approx(theirs.loglikelihood(requests("l", (long, " 4")))[0][0], abs=1e-4)
    assert cutting.generate_until(requests("g", (long, {"until": [], "max_gen_toks": 8})))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("task", KINDS)
def test_an_interrupted_eval_goes_on_from_the_kept_answers(
    hybrids, tokenizer, folder, task, tmp_path, monkeypatch
):
    monkeypatch.setitem(lm_eval_generation._ROWS, "cpu", 3)
    monkeypatch.setitem(lm_eval_model._BATCH_TOKENS, "cpu", 120)
    asked = LmEvalTask(task=task, include_path=folder)
    answered = []

    def run(scope, most=math.inf):
        def progress(done, total, **_):
            answered.append(done)
            if len(answered) >= most:
                raise KilledError

        answered.clear()
        kept = KeptAnswers(tmp_path / "kept", scope)
        lm = AprielLM(hybrids["all_fa"], tokenizer=tokenizer, kept=kept, progress=progress)
        return run_loaded(load_tasks(tokenizer, asked, seed=0), lm, asked)["results"][task]

    whole = run("other model")
    total = len(answered)
    with pytest.raises(KilledError):
        run("model", most=total // 2)
    kept = len(answered)
    assert 0 < kept < total
    assert run("model") == pytest.approx(whole)
    assert len(answered) == total - kept, "only what was not answered before is asked"
    run("model")
    assert answered == []


@pytest.fixture(scope="module")
def checkpoint(hybrids, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    mixed = hybrids["mixed"]
    mixed.name_placement("slow", ("fa", "fa"))
    mixed.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_named_placement_and_a_layer_map_are_what_they_say(checkpoint, hybrids, tokenizer):
    asked = requests("l", ("copy : b c d . start", " at c ?"))
    by_hand = AprielLM(hybrids["all_fa"], tokenizer=tokenizer).loglikelihood(asked)
    for placement in ("slow", "FF", "fa:fa", ["fa", "fa"]):
        lm = AprielLM(str(checkpoint), placement, device="cpu")
        assert lm.model.placement == ("fa", "fa")
        assert lm.loglikelihood(asked)[0][0] == pytest.approx(by_hand[0][0], abs=1e-4)
    assert AprielLM(str(checkpoint)).model.placement == ("mamba", "gdn")


@pytest.mark.parametrize("placement", ["fast", "FFF", "FX", "fa:mamba:fa"])
def test_an_unknown_placement_names_the_known_ones(checkpoint, placement):
    with pytest.raises(UserError, match=r"neither a name \(slow\) nor a map of 2 layers, such as FF"):
        AprielLM(str(checkpoint), placement)


def test_a_plain_model_with_other_attention_is_answered_too(tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    plain = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    )
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = requests("l", ("copy : b c d", " . start at c"), ("copy : b c d", " ."))
    theirs = HFLM(pretrained=plain.eval(), tokenizer=tokenizer).loglikelihood(asked)
    lm = AprielLM(str(tmp_path))
    assert [a for a, _ in lm.loglikelihood(asked)] == pytest.approx([a for a, _ in theirs], abs=1e-4)
    with pytest.raises(UserError, match="GPT2LMHeadModel has no mixers"):
        AprielLM(str(tmp_path), "FF")


def test_another_tokenizer_or_chat_template_is_refused(checkpoint, tokenizer, tmp_path):
    changed = {name: tmp_path / name for name in ("chat", "words", "same")}
    for name, path in changed.items():
        shutil.copytree(checkpoint, path)
        content = json.loads((path / "tokenizer.json").read_text())
        if name == "words":
            vocab = content["model"]["vocab"]
            vocab["b"], vocab["c"] = vocab["c"], vocab["b"]
        (path / "tokenizer.json").write_text(json.dumps(content))
        if name == "chat":
            (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    AprielLM(str(checkpoint), tokenizer=str(changed["same"]))
    with pytest.raises(UserError, match=r"is not the tokenizer of .*: chat template differ"):
        AprielLM(str(checkpoint), tokenizer=str(changed["chat"]))
    with pytest.raises(UserError, match=r"is not the tokenizer of .*: tokens and rules differ"):
        AprielLM(str(checkpoint), tokenizer=str(changed["words"]))


def test_a_checkpoint_without_tokenizer_asks_for_its_teachers(hybrids, tokenizer, tmp_path):
    hybrids["all_fa"].save_pretrained(tmp_path / "bare")
    with pytest.raises(
        UserError, match="holds no tokenizer; give the one of its teacher: tokenizer=DIRECTORY"
    ):
        AprielLM(str(tmp_path / "bare"))
    tokenizer.save_pretrained(tmp_path / "words")
    assert AprielLM(str(tmp_path / "bare"), tokenizer=str(tmp_path / "words")).tokenizer_name


def test_an_unknown_setting_is_refused(checkpoint):
    with pytest.raises(UserError, match="'placment', which apriel does not know"):
        AprielLM(str(checkpoint), placment="slow")


def run_lm_eval(tmp_path, *arguments):
    """The command as it runs where the package is installed: site-packages hold our .pth file."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    shutil.copy(ROOT / "apriel_assets" / "lm_eval_plugin.pth", site / "apriel_assets_lm_eval.pth")
    (site / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(site)!r})")
    program = (
        "import lm_eval.tasks.manager as m; old = m.TaskManager.__init__\n"
        "m.TaskManager.__init__ = lambda self, *a, **k: old(self, *a, **{**k, 'include_defaults': False})\n"
        "from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    )  # its own 14,000 task files take many seconds to index
    environment = {
        **os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True, text=True
    )


def test_the_command_line_knows_model_placement_and_tasks(checkpoint, tmp_path):
    out = tmp_path / "out"
    ran = run_lm_eval(
        tmp_path, "--model", "apriel",
        "--model_args", f"pretrained={checkpoint},placement=slow,kept={tmp_path / 'kept'}",
        "--tasks", "apriel_recall", "--limit", "5", "--output_path", out, "--log_samples",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    (results,) = out.rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["apriel_recall"]
    assert found["sample_len"] == 5
    assert list((tmp_path / "kept").rglob("*.jsonl"))
    wrong = run_lm_eval(
        tmp_path, "--model", "apriel", "--model_args", f"pretrained={checkpoint},placement=fast",
        "--tasks", "apriel_recall",
    )  # fmt: skip
    assert wrong.returncode == 2
    assert (
        wrong.stderr.rstrip().splitlines()[-1].startswith("apriel: placement=fast is neither a name (slow)")
    )
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize("placement", ["all_fa", "mixed"])
def test_the_decode_runner_writes_the_same_texts(hybrids, tokenizer, placement, monkeypatch):
    """What a GPU does: slices of tokens by the runner, stop strings looked for in between."""
    contexts = [
        "copy : b c",
        "recall : k = 3 , b = 4 . ask k ?",
        "so",
        "pick : f k q b . item 2 ?",
        "we get 3",
    ]
    settings = {"until": ["is", " then the"], "max_gen_toks": 21}
    lm = AprielLM(hybrids[placement], tokenizer=tokenizer, batch_size=3)
    asked = requests("g", *((context, settings) for context in contexts))
    expected = lm.generate_until(asked)
    assert any(len(text.split()) > 17 for text in expected), "the test needs more than one slice"
    runners = []

    def on_runner(model, prompts, wanted):
        runners.append(len(prompts))
        return True

    monkeypatch.setattr(lm_eval_generation, "_runs_on_runner", on_runner)
    assert lm.generate_until(asked) == expected
    assert runners == [3, 2]


def test_long_prompts_are_written_after_a_few_at_a_time():
    rows = lm_eval_generation._rows_at_once
    assert rows("cpu", 100) == 64
    assert rows("cpu", 32_000) == 2
    assert rows("cpu", 10**6) == 1
    assert rows("cuda", 4096) == 128
