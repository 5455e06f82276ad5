"""One machine's stack: the embedded server and the child processes."""
