"""Ownership of streams by this worker: claims, leases, takeovers and suspects."""
