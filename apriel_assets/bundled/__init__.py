"""The teacher that ships with the package (`teacher/`) and the tokenizer it was trained with.

Small models and their vocabulary only. How the teacher was trained: `benchmarks/train_bundled_teacher.py`.
"""
