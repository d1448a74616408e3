"""`parakeet-server serve`: Redis, workers and ingresses as child processes, kept running."""
