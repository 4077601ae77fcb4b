"""pyctrd: containerd's job as a Python library, with no daemon."""
