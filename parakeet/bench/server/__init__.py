"""The server under load: started afresh, probed, and what its processes and its Redis take."""
