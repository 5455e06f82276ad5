"""Keys and values in pages: whose they are, and which rows share them. What is in a page is the backend's."""
