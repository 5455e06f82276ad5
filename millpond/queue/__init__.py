"""The queue protocol: keys, scripts, the write side and the read side."""
