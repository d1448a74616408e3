"""Training data: shards of speech, samples of several utterances, batches of fixed shapes."""
