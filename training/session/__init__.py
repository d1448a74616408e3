"""A session of training: as many steps as fit into its time, and a checkpoint at its end."""
