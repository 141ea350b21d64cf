"""Matryoshka: kept placements bit for bit, sharing by hand, checkpoints with named placements, refusals."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from apriel_assets.distillation.supernet import build_supernet
from apriel_assets.errors import UserError
from apriel_assets.hybrid.matryoshka import make_matryoshka, sharing, sharing_table
from apriel_assets.hybrid.model import HybridForCausalLM
from tests.hybrid.tiny_teachers import random_ids, tiny_teacher

ALL = ("fa", "swa", "gdn", "kda", "mamba")
FA = ("fa", "fa", "fa")
KEPT = {"turbo": ("gdn", "fa", "kda"), "fast": ("gdn", "swa", "mamba"), "again": ("gdn", "fa", "kda")}


def make_supernet(kind="llama"):
    """A supernet whose mixers are no more what conversion made of them, as after training."""
    supernet = build_supernet(tiny_teacher(kind), (ALL, ("fa", "swa"), ALL)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if ".mixers." in name and ".mixers.fa." not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return supernet


def logits(model, placement, ids):
    model.set_placement(placement)
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen3"])
def test_kept_placements_are_the_supernets_bit_for_bit(kind, tmp_path):
    supernet, ids = make_supernet(kind), random_ids(2, 20)
    held = supernet.mixers
    expected = {name: logits(supernet, placement, ids) for name, placement in KEPT.items()}
    matryoshka = make_matryoshka(supernet, KEPT)
    assert matryoshka.placements == {"safe": FA, **KEPT}
    assert matryoshka.placement == FA
    assert [set(names) for names in matryoshka.mixers] == [
        {"fa", "gdn"},
        {"fa", "swa"},
        {"fa", "kda", "mamba"},
    ]
    matryoshka.save_pretrained(tmp_path)
    loaded = HybridForCausalLM.from_pretrained(tmp_path).eval()
    for model in (matryoshka, loaded):
        assert model.num_parameters() < supernet.num_parameters()
        for name, wanted in expected.items():
            assert torch.equal(logits(model, name, ids), wanted), name
        assert torch.equal(logits(model, "safe", ids), tiny_teacher(kind)(ids).logits)
    assert supernet.mixers == held  # a copy was pruned
    assert len({wanted.sum().item() for wanted in expected.values()}) == 2


def test_can_prune_the_supernet_itself():
    supernet = make_supernet()
    supernet.name_placement("old", ("mamba", "swa", "kda"))
    model = make_matryoshka(supernet, {"turbo": KEPT["turbo"]}, copy=False)
    assert model is supernet
    assert model.mixers == (("fa", "gdn"), ("fa",), ("fa", "kda"))
    assert "old" not in model.placements


@pytest.mark.parametrize("loader", [HybridForCausalLM, AutoModelForCausalLM])
def test_loads_with_a_placement_active(loader, tmp_path):
    make_matryoshka(make_supernet(), KEPT).save_pretrained(tmp_path)
    assert loader.from_pretrained(tmp_path).placement == FA
    assert loader.from_pretrained(tmp_path, placement="turbo").placement == KEPT["turbo"]
    mixed = ("fa", "swa", "mamba")
    assert loader.from_pretrained(tmp_path, placement=mixed).placement == mixed
    for wrong, message in (
        ("slow", "no placement 'slow'; named: again, fast, safe, turbo"),
        (("fa", "gdn", "fa"), "layer 1 holds no 'gdn', only fa, swa: it was pruned away"),
        (("fa",), "1 mixers for 3 layers"),
    ):
        with pytest.raises(UserError, match=message):
            loader.from_pretrained(tmp_path, placement=wrong)


def test_sharing_by_hand():
    supernet = make_supernet()
    matryoshka = make_matryoshka(supernet, KEPT)
    size = {
        (layer, name): sum(p.numel() for p in mixer.parameters())
        for layer, bank in enumerate(supernet.banks)
        for name, mixer in bank.mixers.items()
    }
    common = supernet.num_parameters() - sum(size.values())

    def runs(placement):
        return common + sum(size[pair] for pair in enumerate(placement))

    total = runs(FA) + size[0, "gdn"] + size[1, "swa"] + size[2, "kda"] + size[2, "mamba"]
    found = sharing(matryoshka)
    assert found.total_parameters == matryoshka.num_parameters() == total
    assert found.shared_parameters == common  # no layer runs the same mixer in all four
    assert found.shared_share == pytest.approx(common / total)
    assert found.parameters == {name: runs(placement) for name, placement in matryoshka.placements.items()}
    assert found.added_bytes == {
        "safe": 4 * (size[0, "fa"] + size[2, "fa"]),  # layer 1's attention serves turbo, too
        "turbo": 0,  # all of it serves "again", too
        "fast": 4 * (size[1, "swa"] + size[2, "mamba"]),
        "again": 0,
    }
    rows = sharing_table(matryoshka).to_pylist()
    assert [row["placement"] for row in rows] == ["safe", "turbo", "fast", "again"]
    assert {row["shared_share"] for row in rows} == {found.shared_share}
    assert [row["added_bytes"] for row in rows] == list(found.added_bytes.values())


def test_bytes_follow_the_dtype_and_one_placement_shares_all_with_itself():
    model = HybridForCausalLM.from_teacher(tiny_teacher("llama_tied"))
    model.name_placement("safe")
    found = sharing(model)
    assert (found.shared_share, found.total_parameters) == (1, model.num_parameters())
    assert found.added_bytes == {"safe": 4 * model.num_parameters()}
    assert sharing(model.bfloat16()).added_bytes == {"safe": 2 * model.num_parameters()}


@pytest.mark.parametrize(
    ("placements", "message"),
    [
        ({"turbo": ("gdn", "gdn", "fa")}, "placement 'turbo': layer 1 holds no 'gdn'"),
        ({"turbo": ("gdn", "fa")}, "placement 'turbo': 2 mixers for 3 layers"),
        ({"turbo": ("gdn", "rwkv", "fa")}, "placement 'turbo': layer 1: unknown mixer 'rwkv'"),
        ({"safe": ("gdn", "fa", "fa")}, "placement 'safe' is all full attention"),
    ],
)
def test_refuses_placements_by_name_and_changes_nothing(placements, message):
    supernet = make_supernet()
    with pytest.raises(UserError, match=message):
        make_matryoshka(supernet, placements, copy=False)
    assert supernet.mixers[0] == ALL
    assert supernet.placements == {}


def test_refuses_a_supernet_that_lost_full_attention_and_sharing_among_no_names():
    lost = build_supernet(tiny_teacher(), (ALL, ("swa", "gdn"), ALL))
    with pytest.raises(UserError, match="placement 'safe': layer 1 holds no 'fa'"):
        make_matryoshka(lost, {})
    with pytest.raises(UserError, match="no named placements"):
        sharing(lost)
