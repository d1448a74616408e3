"""The common frame of all processes: log, last words, standard streams, restarts and stop."""
