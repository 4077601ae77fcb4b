"""What the store knows, in SQLite."""

# In the root directory.
DATABASE = "pyctrd.db"
