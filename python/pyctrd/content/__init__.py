"""Blobs by digest, and unpacked layers by diff_id."""

# In the root directory: what is on its way in, a directory for each ingest.
INGESTS = "content/ingest"
