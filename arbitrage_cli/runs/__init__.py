"""What a run leaves on disk: its folder, records, rows and summary."""
