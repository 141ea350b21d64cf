"""How good and how fast a model is: generation, accuracy, divergence, throughput and the roofline beside it.

Works on any causal LM of transformers, hybrids included. Problems and verifiers live in `tasks`; drawing the
results belongs to `reporting`, ranking placements to `scoring`.
"""
