"""The coarse work: RQ's workers and the functions that they run. Imports no other service."""
