"""Interfaces and network namespaces; usable alone."""
