"""Settings in image files of other tools."""
