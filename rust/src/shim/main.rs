//! The process that stays with a running container.

fn main() {}
