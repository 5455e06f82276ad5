"""The backend that runs transformers' own model code on torch, on CPU and CUDA."""
