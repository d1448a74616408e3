"""What an operator sees of a process: metrics for Prometheus, and health checks, on `--metrics-port`."""
