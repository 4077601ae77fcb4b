//! The single pass: bytes are digested, stored, decompressed, digested again and unpacked while they arrive.
//!
//! Each blob has a [`Pipeline`] of four stages (store, inflate, diff, apply). Stages are tasks on one pool of the
//! process, not threads of their own; blocks of bytes from one bounded supply go from stage to stage without a copy.

mod archive;
mod batches;
mod blocks;
mod chunked;
mod contents;
mod convert;
mod crc64;
mod cuts;
mod ingest;
mod measured;
mod options;
mod pack;
mod packer;
mod pool;
mod run;
mod stage;
mod work;

pub use archive::{Archive, Member};
pub use blocks::{Block, IN_BLOCK_BYTES};
pub use chunked::Table;
pub use convert::{Conversion, ConversionOptions, Source};
pub use ingest::{Form, Ingest, IngestOptions, Keep, PACKED_BYTES, unpack_file};
pub use options::{Apply, Options, Outcome};
pub use pack::{Packed, Stop, pack};
pub use packer::{Packing, Repacked};
pub use run::Pipeline;
pub use stage::{STAGES, StageTimes};

use crate::error::Error;

/// What a layer's new blob could not be written for.
fn wrong_layer(error: &std::io::Error) -> Error {
    Error::io("write", "layer", error)
}
