"""Batches: their files and records, and the running of their rows."""
