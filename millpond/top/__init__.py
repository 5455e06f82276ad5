"""The live view of `millpond top`: what it gathers, and how that is drawn."""
