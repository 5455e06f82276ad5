"""A model in this process: loading, self check, and the engine over either backend."""
