"""Pictures of results: what they share is in `saving`, each kind has a file of its own."""
