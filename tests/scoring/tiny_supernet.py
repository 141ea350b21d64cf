"""A tiny supernet, and a store that its all-FA path sampled."""

import pyarrow as pa

from apriel_assets.bundled.tokenizer import build_tokenizer
from apriel_assets.hybrid.model import HybridForCausalLM
from apriel_assets.scoring.config import StoreConfig
from apriel_assets.scoring.store import sample_store
from tests.scoring.tiny_hybrid import TASKS, make_hybrid

TOKENIZER = build_tokenizer()


def make_supernet(kind: str = "llama", *, mixers=("swa", "mamba"), noise=0.3, **sizes) -> HybridForCausalLM:
    """All-FA active; the last layer holds no Mamba."""
    model = make_hybrid(kind, noise=noise, **{"vocab_size": len(TOKENIZER), **sizes})
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    all_fa = model.placement
    for mixer in mixers:
        model.set_placement(all_fa)
        layers = range(model.num_layers - (mixer == "mamba"))
        model.convert(layers, mixer, keep=True, options={"swa": {"window": 3}})
    model.set_placement(all_fa)
    return model


def make_store(model: HybridForCausalLM, *, problems: int = 6, **settings) -> pa.Table:
    """Verdicts are made up, two of three right: a random model answers nothing."""
    config = StoreConfig(**{"problems": problems, "samples": 3, "max_new_tokens": 10, **settings})
    table = sample_store(model, TOKENIZER, TASKS, config, seed=0)
    verdicts = pa.array([index % 3 != 0 for index in range(table.num_rows)])
    return table.set_column(table.schema.get_field_index("correct"), "correct", verdicts)
