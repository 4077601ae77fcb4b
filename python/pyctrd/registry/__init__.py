"""The distribution API as a client."""
