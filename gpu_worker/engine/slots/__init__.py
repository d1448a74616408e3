"""What a slot of the engine holds beside the model's state: samples, time, pages."""
