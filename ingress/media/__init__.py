"""Media files and compressed streams to samples, in child processes with limits."""
