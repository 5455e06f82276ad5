"""Sends what webhooks are owed: takes pending deliveries, signs, posts, and writes down how it went."""
