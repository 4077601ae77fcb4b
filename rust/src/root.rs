//! A directory descriptor; every path is resolved beneath it by the kernel.
