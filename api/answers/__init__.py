"""What is answered: views, errors, event streams, completions."""
