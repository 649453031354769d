"""The studio: a web page and an HTTP API over one queue of images."""
