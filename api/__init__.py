"""The HTTP side of Millpond. Imports `millpond` only, never the worker, never torch."""
