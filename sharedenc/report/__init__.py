"""What a study found: its tables beside the published ones, and one page to read."""
