"""Values: references, digests, descriptors, platforms, manifests, indexes, configs. No I/O."""
