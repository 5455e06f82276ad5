"""The backend of compiled CPU kernels, with its own forward pass in C."""
