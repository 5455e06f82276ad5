"""Batch files: read, run and gather."""
