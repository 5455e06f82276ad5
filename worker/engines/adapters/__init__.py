"""LoRA adapters as their files have them, for every backend that computes them."""
