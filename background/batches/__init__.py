"""Batches in slices: the file is checked, its rows go through the queues, their results into files."""
