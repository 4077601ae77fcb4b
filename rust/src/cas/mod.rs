//! The content-addressable store: ingest, blobs, locks.
