"""What an operator may get wrong: releases, placements, policies, keys, hosts. One line each."""

import json
from importlib.util import find_spec

import pytest

from apriel_assets.errors import UserError
from apriel_assets.serving.release import read_release
from apriel_assets.serving.shards import copy_tree
from apriel_assets.serving.vllm_plugin import servable

pytest.importorskip("prometheus_client")

from apriel_assets.serving import server


def release_without(release, tmp_path, change):
    copy_tree(release, tmp_path / "release")
    change(tmp_path / "release")
    return tmp_path / "release"


BAD = {
    "a placement that is not there": (("--placements", "slow"), "no placement 'slow' in"),
    "a context beyond the model": (("--context", "257"), "the model has 256 positions"),
    "no policy file": (("--policy", "missing.yaml"), "--policy missing.yaml"),
    "no key file": (("--api-keys", "missing.txt"), "--api-keys missing.txt"),
    "another machine's address": (("--host", "203.0.113.1"), "203.0.113.1"),
    "an unknown engine": (("--engine", "tpu"), "--engine tpu: choose from auto, own, vllm"),
    "no limit": (("--max-requests", "0"), "limits must be positive"),
}


if find_spec("vllm") is None:
    BAD["no vLLM here"] = (("--engine", "vllm"), "vllm is not installed here")


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments(case, apriel, release):
    arguments, message = BAD[case]
    code, out, err = apriel("serve", release, "--port", "0", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: {code: slow}", "names placement 'slow'"),
        ("task: {code: turbo}", "task"),
        ("most_context_tokens: {safe: 0}", "at least 1"),
        ("tasks: [", "not YAML"),
    ],
)
def test_wrong_policies(content, message, apriel, release, tmp_path):
    (tmp_path / "policy.yaml").write_text(content)
    code, _, err = apriel("serve", release, "--port", "0", "--policy", tmp_path / "policy.yaml")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert message in err


def test_an_empty_key_file_is_not_no_keys(apriel, release, tmp_path):
    (tmp_path / "keys").write_text("\n")
    code, _, err = apriel("serve", release, "--port", "0", "--api-keys", tmp_path / "keys")
    assert (code, "is empty" in err) == (2, True)


def edited(path):
    record = json.loads((path / "release.json").read_text())
    record["placements"]["more"] = ["fa"]
    (path / "release.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "release.json").unlink(), "has no release.json"),
        (lambda path: (path / "release.json").write_text("{}"), "is not what `apriel export` wrote"),
        (edited, "has no engine 'more'"),
    ],
)
def test_what_is_no_release(change, message, apriel, release, tmp_path):
    code, _, err = apriel("serve", release_without(release, tmp_path, change), "--port", "0")
    assert code == 2
    assert message in err


def test_weights_that_do_not_match_stop_the_start(apriel, release, tmp_path):
    def change(path):
        file = path / "matryoshka" / "turbo.safetensors"
        file = next(path.glob("matryoshka/*turbo*.safetensors")) if not file.exists() else file
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    directory = release_without(release, tmp_path, change)
    code, _, err = apriel("serve", directory, "--port", "0", "--placements", "turbo", "--slots", "1")
    assert code == 2
    assert "engine turbo: checkpoint" in err
    assert "SHA-256" in err


def test_engines_run_vllm_where_it_is_installed_and_can(release, monkeypatch):
    found = read_release(release)
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    assert server.choose_runtime(found, "auto") == "own"
    monkeypatch.setattr(server, "find_spec", lambda name: name)
    assert [server.choose_runtime(found, asked) for asked in ("auto", "own", "vllm")] == [
        "vllm",
        "own",
        "vllm",
    ]
    assert server.choose_runtime(found, "auto", "cuda:1") == "own"  # vLLM would take another
    with pytest.raises(UserError, match="--device cuda:1: vllm serves on the device that it was built for"):
        server.choose_runtime(found, "vllm", "cuda:1")
    monkeypatch.setattr(servable, "BACKBONES", ("qwen3",))
    assert server.choose_runtime(found, "auto") == "own"
    with pytest.raises(UserError, match="this backbone is llama"):
        server.choose_runtime(found, "vllm")
