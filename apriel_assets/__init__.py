"""Asset graph that turns a full-attention LLM into hybrids one can trust and ship."""

__version__ = "0.1.0"
