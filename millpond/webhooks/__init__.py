"""What is known of webhooks without sending one: events, receivers, addresses, pending deliveries."""
