"""Published figures to compare with: the progressive 15B hybrids, the supernet follow-up, the field in 2025.

Copied as published. Where a speed is a range or a bound, `speedup` holds its lower number and `note` says so.
"""

from typing import Any

_TEACHER_MEAN, _NUM_LAYERS = 0.80, 50
H30_FULL_ATTENTION = (
    0,
    1,
    2,
    4,
    9,
    *range(10, 20),
    26,
    28,
    29,
    34,
    48,
)  # layers from 0; published counted from 1
H30_PLACEMENT = tuple("fa" if layer in H30_FULL_ATTENTION else "mamba" for layer in range(_NUM_LAYERS))

# model, Mamba layers, decode speed-up, mean eval, training tokens in billions, note
_H1 = (
    ("teacher", 0, 1.0, 0.80, None, None),
    ("H-25", 25, 1.8, 0.75, 26.0, None),
    ("H-27", 27, 1.9, 0.76, 15.0, "from an earlier H-25"),
    ("H-30", 30, 2.1, 0.74, 37.0, None),
    ("H-30-SFT", 30, 2.1, 0.78, 76.8, "55.9B tokens of distillation and 20.9B of SFT"),
    ("H-34", 34, 2.5, 0.71, 63.0, None),
    ("H-37", 37, 2.9, 0.69, 89.0, None),
    ("H-40", 40, 3.4, 0.69, 137.0, None),
)
_H30_SFT_EVALS = (  # benchmark, H-30-SFT, teacher
    ("MATH500", 0.92, 0.90),
    ("MT-Bench", 8.58, 8.30),
    ("GSM8k", 0.95, 0.97),
    ("GPQA", 0.55, 0.59),
    ("AIME24", 0.65, 0.70),
)
_SUPERNET = (  # FA, SWA, KDA, GDN layers; speed at 32k; share of the teacher's quality kept
    (12, 26, 6, 4, 2.85, 0.96),
    (3, 25, 4, 16, 4.76, 0.94),
    (0, 30, 5, 13, 6.2, 0.90),
    (0, 16, 13, 19, 6.9, 0.81),
    (0, 10, 5, 33, 10.69, 0.77),
)
_FIELD = (  # model, efficient layers per full-attention layer (None: not such a mix), layers, speed-up, note
    ("Nemotron-H-47B", 9, "9 Mamba-2 : 1 FA", 3.0, "about 3x against a dense 70B, at long context"),
    ("Falcon-H1-34B", None, "Mamba-2 and FA in parallel", 8.0, "decode; 4x in prefill"),
    ("MiniMax-M1", 7, "7 Lightning : 1 FA", 3.0, "3 to 4x, decode at 100k"),
    ("Nemotron-Nano-9B-v2", 7, "7 Mamba-2 : 1 FA", 6.0, "up to 6x"),
    ("Qwen3-Next-80B-A3B", 3, "3 GDN : 1 FA", 10.0, "more than 10x beyond 32k"),
    ("DeepSeek V3.2-Exp", None, "sparse attention 1:64", 3.0, "at 128k"),
    ("Kimi-Linear-48B-A3B", 3, "3 KDA : 1 FA", 6.0, "up to 6x at 1M, 75% less KV cache"),
    ("Nemotron 3 Nano 30B-A3B", 8, "8 Mamba-2 : 1 FA", 3.3, "up to 3.3x at 8k in, 16k out"),
)


def published_rows() -> list[dict[str, Any]]:
    """Return the rows of the `published` table."""
    return [*_h1_rows(), *_h30_sft_eval_rows(), *_supernet_rows(), *_field_rows()]


def _h1_rows() -> list[dict[str, Any]]:
    return [
        {
            "source": "h1",
            "model": model,
            "num_layers": _NUM_LAYERS,
            "num_replaced": replaced,
            "placement_counts": f"{_NUM_LAYERS - replaced} FA, {replaced} Mamba",
            "speedup": speedup,
            "quality": quality,
            "teacher_quality": _TEACHER_MEAN,
            "tokens_b": tokens_b,
            "placement": list(H30_PLACEMENT) if replaced == 30 else None,
            "kv_limit": _NUM_LAYERS / (_NUM_LAYERS - replaced),
            "note": note,
        }
        for model, replaced, speedup, quality, tokens_b, note in _H1
    ]


def _h30_sft_eval_rows() -> list[dict[str, Any]]:
    return [
        {
            "source": "h1",
            "model": "H-30-SFT",
            "num_layers": _NUM_LAYERS,
            "num_replaced": 30,
            "benchmark": benchmark,
            "quality": quality,
            "teacher_quality": teacher,
        }
        for benchmark, quality, teacher in _H30_SFT_EVALS
    ]


def _supernet_rows() -> list[dict[str, Any]]:
    return [
        {
            "source": "supernet",
            "model": f"{fa}/{swa}/{kda}/{gdn}",
            "num_layers": fa + swa + kda + gdn,
            "num_replaced": swa + kda + gdn,
            "placement_counts": f"{fa} FA, {swa} SWA, {kda} KDA, {gdn} GDN",
            "speedup": speedup,
            "quality": quality,
            "teacher_quality": 1.0,
            "kv_limit": (fa + swa + kda + gdn) / fa if fa else None,
            "note": "speed at 32k; quality is the share kept",
        }
        for fa, swa, kda, gdn, speedup, quality in _SUPERNET
    ]


def _field_rows() -> list[dict[str, Any]]:
    return [
        {
            "source": "field",
            "model": model,
            "placement_counts": counts,
            "speedup": speedup,
            "kv_limit": None if ratio is None else 1.0 + ratio,
            "note": note,
        }
        for model, ratio, counts, speedup, note in _FIELD
    ]
