"""Networks opened again from what is on disk."""
