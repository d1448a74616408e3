"""The command `parakeet-server serve`, which runs Redis, workers and ingresses as child processes."""
