"""A worker's in-flight jobs, from their claim to the stored result."""
