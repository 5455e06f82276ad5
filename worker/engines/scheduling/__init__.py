"""Which rows run at the next step, and when each one ends. No model."""
