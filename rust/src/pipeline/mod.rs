//! The single pass that joins digest, decompression and unpacking.
