"""Many runs from one command: points, processes, clusters, search."""
