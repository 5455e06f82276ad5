"""The remote engine: any OpenAI-compatible server does the generating."""
