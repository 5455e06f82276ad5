"""A finished run as files: JSON, CSV, Markdown and one HTML page."""
