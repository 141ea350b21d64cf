"""Training a student on traces: losses, batches, optimisers, the trainer with exact resume, and the weight
merge.

Here: what turns (student, teacher, traces, config, seed) into new weights. Not here: which layers are swapped
(`scoring`, `hybrid`), where checkpoints live (`resources`), evaluation.
"""
