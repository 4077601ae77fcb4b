"""A walk through pyctrd, from a registry to a running container."""
