"""From a checkpoint, a folder or a hub to weights in memory."""
