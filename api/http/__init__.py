"""The HTTP server itself: connections and their limits, and what every request passes through."""
