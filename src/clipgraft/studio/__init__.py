"""Web page and HTTP API over one queue of images."""
