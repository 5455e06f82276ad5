"""OpenAI's formats: requests to jobs, and results to responses. Pure."""
