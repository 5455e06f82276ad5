"""From logits to tokens, for both backends: filters, penalties, log-probabilities."""
