"""What lies on disk, and its formats."""
