"""Authentication of clients, and what each client may do."""
