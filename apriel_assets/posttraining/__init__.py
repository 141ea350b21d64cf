"""What comes after distillation: reinforcement learning with verifiable rewards, and what any further training changed.

Here: GRPO on one placement a step, and the paired comparison of a checkpoint before and after. Not here: fine-tuning on
traces (`distillation`), tasks and their verifiers (`evaluation`).
"""
