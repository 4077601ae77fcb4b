"""What the store knows, in SQLite."""
