"""Kernels for processors that this machine is not: compiled for them, and run by an emulator."""
