"""Which tokens to guess ahead of a row, so that one pass can verify several. Pure: no model, no tensor."""
