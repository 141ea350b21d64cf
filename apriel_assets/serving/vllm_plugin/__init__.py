"""Exported engines in vLLM: its attention, caches, convolutions and scheduler around our recurrences.

vLLM finds `register` here by the entry point group `vllm.general_plugins`. Only `layers/` imports vLLM, and only vLLM
imports `layers/`: the rest is plain and runs everywhere. What is exported belongs to `export.py`.
"""
