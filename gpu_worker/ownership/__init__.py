"""Which streams are this worker's, and until when."""
