"""OpenAI's shapes, both ways: requests to jobs, results to responses."""
