"""What happens to clean speech on its way: rooms, noise, other voices, channels, levels, gaps."""
