"""What each process of ours does beside its work: its log, its last words, its standard streams, its stop."""
