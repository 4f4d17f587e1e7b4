"""Teachers: found, checked, joined, and asked once."""
