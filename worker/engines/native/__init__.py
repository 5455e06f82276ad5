"""The backend of compiled CPU kernels, with an own forward pass in C."""
