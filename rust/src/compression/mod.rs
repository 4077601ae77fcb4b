//! Detection and decompression of layer blobs.
