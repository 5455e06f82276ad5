"""Which answer of several texts wins, and when that is certain. Pure."""
