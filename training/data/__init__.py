"""From utterances to batches: shards of speech, samples made of several utterances, fixed shapes."""
