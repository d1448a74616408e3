"""The transducer loss, with a time window for chosen targets, and its lattice on CPU and GPU."""
