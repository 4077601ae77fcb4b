//! Layers that carry a table of contents (zstd:chunked, eStargz): read without the contents that are here already.
//!
//! What a table says is used for one thing: which bytes of the blob come to a content of which SHA-256. From the contents
//! that unpacked layers have, the bytes that were fetched and what stands between the files, the layer's tar is written again
//! ([`Plan::rebuild`]), and goes through the same stages as any other, to its `diff_id`. So names, owners, links and modes of a
//! table make nothing and are judged by no second set of rules, and what it lies about ends in another `diff_id`.

mod estargz;
mod gotar;
mod json;
mod plan;
mod split;
mod table;

pub use estargz::{FOOTER_BYTES, table_offset};
pub use plan::Plan;
pub use table::{Table, estargz, zstd_chunked};

use crate::compression::Decoder;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};

/// Decoded at a time.
const STEP_BYTES: usize = 64 << 10;

fn refuse(reason: impl Into<String>) -> Error {
    Error::Invalid { field: "table of contents", value: "layer".to_owned(), reason: reason.into() }
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(bytes);
    hasher.finish()
}

/// Fails where bytes are not those that a digest names.
fn check(subject: &str, bytes: &[u8], expected: &Digest) -> Result<()> {
    let actual = sha256(bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(Error::DigestMismatch {
        subject: subject.to_owned(),
        expected: Box::new(*expected),
        actual: Box::new(actual),
    })
}

/// All that compressed bytes come to, if it is not more than `most`.
fn expand(bytes: &[u8], most: u64) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    decode(bytes, &mut Decoder::default(), &mut vec![0; STEP_BYTES], &mut |piece| {
        if (found.len() + piece.len()) as u64 > most {
            return Err(refuse(format!("comes to more than {most} bytes")));
        }
        found.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(found)
}

/// Decodes a piece of compressed bytes that ends where its stream does.
fn decode(
    bytes: &[u8],
    decoder: &mut Decoder,
    buffer: &mut [u8],
    sink: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    feed(bytes, decoder, buffer, sink)?;
    decoder.finish()
}

/// Decodes as much as some bytes of a stream come to.
fn feed(
    bytes: &[u8],
    decoder: &mut Decoder,
    buffer: &mut [u8],
    sink: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut at = 0;
    loop {
        let step = decoder.decode(&bytes[at..], buffer)?;
        at += step.consumed;
        sink(&buffer[..step.produced])?;
        if at == bytes.len() && step.produced < buffer.len() {
            return Ok(());
        }
    }
}
