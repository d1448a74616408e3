"""Monitoring of a process: metrics for Prometheus, and health checks, on `--metrics-port`."""
