"""The presence of processes in Redis: leases, the model that all workers serve, the status line."""
