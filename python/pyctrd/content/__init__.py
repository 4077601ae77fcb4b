"""Blobs by digest, and unpacked layers by diff_id."""
