//! The native core of pyctrd.
//!
//! Rust does what touches every byte or needs calls relative to a descriptor: hash, inflate, parse
//! tar, write, mount. Policy stays in Python. Dependencies point one way:
//! `error, digest ← root, flush, mount, compression ← cas, erofs ← tar ← pipeline ← bindings`.

#[cfg(feature = "python")]
mod bindings;
#[cfg(feature = "engine")]
pub mod cas;
#[cfg(feature = "engine")]
pub mod compression;
#[cfg(feature = "engine")]
pub mod digest;
#[cfg(feature = "engine")]
pub mod erofs;
#[cfg(feature = "engine")]
pub mod error;
#[cfg(feature = "engine")]
pub mod flush;
#[cfg(feature = "engine")]
pub mod mount;
#[cfg(feature = "engine")]
pub mod pipeline;
#[cfg(feature = "engine")]
pub mod root;
#[cfg(feature = "engine")]
pub mod send;
#[cfg(feature = "engine")]
pub mod spawn;
#[cfg(feature = "engine")]
pub mod tar;
#[cfg(feature = "engine")]
pub mod toc;
