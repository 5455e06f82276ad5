"""Who may use the queue, and how much: API keys and rate limits."""
