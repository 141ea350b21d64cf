"""What vLLM calls in each of its processes before it reads a config."""

MODEL = "apriel_assets.serving.vllm_plugin.layers.model:HybridForCausalLM"
"""Given as text, so that vLLM imports it where, and when, it builds the model."""


def register() -> None:
    """Tell transformers and vLLM what an exported hybrid is; may be called again."""
    from transformers import AutoConfig
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    from apriel_assets.hybrid.hybrid_config import HybridConfig

    AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
    ModelRegistry.register_model("HybridForCausalLM", MODEL)
