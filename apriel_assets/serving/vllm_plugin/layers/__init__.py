"""The model as vLLM builds it, from vLLM's layers. Imported by vLLM alone; what needs no vLLM lies one level up."""
