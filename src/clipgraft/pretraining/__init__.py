"""Training flatland's base from scratch, and releasing its weights."""
