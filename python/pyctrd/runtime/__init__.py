"""Containers: spec, bundle, runc, shim, state."""
