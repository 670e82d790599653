"""CaraServe: batch inference for one base LLM and many LoRA adapters of different ranks."""

__version__ = "0.1.0"
