"""Pictures of results: what they share is in `files`, each kind has a file of its own."""
