"""Containers that run: their spec, the OCI runtime, the shim that stays with each, their streams."""
