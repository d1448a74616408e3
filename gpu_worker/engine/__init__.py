"""The engine: streams, slots and the schedule of steps, for any model."""
