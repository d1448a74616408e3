"""The worker: it claims streams, decodes their audio in batches on one device, and writes their results."""
