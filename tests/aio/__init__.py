"""The engine, awaitable."""
