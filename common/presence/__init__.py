"""Processes as Redis knows them: leases, what all workers run, the status line."""
