//! The kernel's mount API: overlay, bind, unmount.
