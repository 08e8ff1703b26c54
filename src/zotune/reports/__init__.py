"""What a run leaves behind: curves and a summary."""
