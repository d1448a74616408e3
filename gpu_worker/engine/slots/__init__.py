"""The state of a slot beside the model's: samples, times, pages."""
