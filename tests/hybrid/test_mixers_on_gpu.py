"""Whole mixers on a GPU with the libraries' kernels against the same mixers with their torch form."""

import logging

import pytest
import torch

from apriel_assets.errors import UserError
from apriel_assets.hybrid.config import GatedDeltaNetConfig, KimiDeltaConfig, MambaConfig
from apriel_assets.hybrid.mixers import kernels
from apriel_assets.hybrid.mixers.kernels import FLA, find_library, kernels_in_use, use_library
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

GPU = torch.device("cuda")
CPU = torch.device("cpu")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def make_hybrid(mixer, kernel, dtype):
    teacher = tiny_teacher(**SIZES).to(GPU, dtype)
    model = HybridForCausalLM.from_teacher(teacher, copy=False)
    model.convert([0, 2], mixer, options={mixer: {"kernel": kernel}}, calibration=random_ids(2, 16))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if f".{mixer}." in name:
                noise = 0.05 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter))
    return model


def relative(mine, theirs):
    return ((mine.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-12)).item()


def padded_pass(mixer, kernel, dtype):
    """Return logits at real tokens and the mixers' gradients of a left-padded batch."""
    model = make_hybrid(mixer, kernel, dtype)
    ids = random_ids(2, 70).to(GPU)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    weights = torch.randn(2, 70, 61, generator=torch.Generator().manual_seed(0)).to(GPU) * mask[..., None]
    logits = model(ids, attention_mask=mask, use_cache=False).logits.float() * mask[..., None]
    (logits * weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if f".{mixer}." in name}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("mixer", ["gdn", "kda", "mamba"])
def test_logits_and_gradients_with_left_padding(mixer, dtype):
    pytest.importorskip("fla")
    pytest.importorskip("mamba_ssm")
    exact = padded_pass(mixer, "torch", torch.float32)
    found, plain = (padded_pass(mixer, kernel, dtype) for kernel in ("auto", "torch"))
    least = 3e-2 if dtype == torch.bfloat16 else 1e-3
    for name, value in exact.items():
        # Gradients of decay and gates are sums that nearly cancel: bf16 costs either form much of them.
        assert relative(found[name], value) < least + 2 * relative(plain[name], value), name


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("mixer", ["gdn", "kda", "mamba"])
@pytest.mark.parametrize("split", [1, 33])
@torch.no_grad()
def test_a_cache_goes_on_where_one_pass_would(mixer, split):
    pytest.importorskip("fla")
    pytest.importorskip("mamba_ssm")
    model, ids = make_hybrid(mixer, "auto", torch.bfloat16).eval(), random_ids(2, 70).to(GPU)
    whole = model(ids, use_cache=False).logits
    head = model(ids[:, :split])
    middle = model(ids[:, split:-1], past_key_values=head.past_key_values)
    last = model(ids[:, -1:], past_key_values=middle.past_key_values)
    pieces = torch.cat([head.logits, middle.logits, last.logits], dim=1)
    assert relative(pieces, whole) < 3e-2
    assert all(layer.recurrent_states[0].dtype == torch.float32 for layer in last.past_key_values.layers[::2])


@pytest.mark.gpu
@NEEDS_GPU
def test_provenance_names_the_kernels():
    pytest.importorskip("fla")
    options = {"gdn": GatedDeltaNetConfig(), "kda": KimiDeltaConfig(kernel="torch"), "mamba": MambaConfig()}
    found = kernels_in_use(options, GPU, torch.bfloat16)
    assert found["gdn"].startswith("fla ")
    assert found["kda"].startswith("torch ")


def test_a_cpu_uses_torch_and_says_so():
    options = {"gdn": GatedDeltaNetConfig(), "fa": None, "mamba": MambaConfig()}
    found = kernels_in_use(options, CPU, torch.bfloat16)
    assert all(name.startswith("torch ") for name in found.values())
    assert found["fa"].endswith("scaled_dot_product_attention")


def test_a_kernel_asked_for_by_name_must_be_there():
    with pytest.raises(UserError, match="needs a CUDA device"):
        use_library(FLA, "fla", CPU)
    with pytest.raises(UserError, match=r"gdn.kernel='triton' is unknown"):
        GatedDeltaNetConfig(kernel="triton")


@pytest.fixture
def forgetful():
    find_library.cache_clear()
    kernels._warn_missing.cache_clear()
    yield
    find_library.cache_clear()
    kernels._warn_missing.cache_clear()


def test_a_missing_library_on_a_gpu_is_said_once(monkeypatch, caplog, forgetful):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert [use_library(FLA, "auto", GPU) for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1
    assert "pip install flash-linear-attention" in caplog.text
    with pytest.raises(UserError, match="is not installed"):
        use_library(FLA, "fla", GPU)


def test_a_library_that_is_too_old_is_refused_in_one_line(monkeypatch, forgetful):
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels.importlib.metadata, "version", lambda name: "0.1.2")
    with pytest.raises(UserError, match=r"flash-linear-attention 0.1.2 is too old, 0.5 or newer"):
        use_library(FLA, "auto", GPU)
