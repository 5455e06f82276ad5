"""A Llama-like model's forward pass in compiled kernels, for CPUs with AVX512-BF16."""
