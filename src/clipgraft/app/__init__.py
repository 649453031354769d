"""The studio: one service, an HTTP API and a page over it."""
