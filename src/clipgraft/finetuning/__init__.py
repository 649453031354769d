"""Fine-tuning CLIP on captioned images."""
