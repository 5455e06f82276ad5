"""The torch engine: transformers models over a slot KV cache."""
