"""The OpenAPI file."""
