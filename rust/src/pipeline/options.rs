//! What a pipeline is asked for, and what it answers.

use std::fs::File;

use super::packer::{Packer, Repacked};
use crate::compression::Compression;
use crate::digest::Digest;
use crate::tar::merge::Merger;
use crate::tar::{AppliedLayer, LayerWriter, Limits};

/// What becomes of the tar.
#[derive(Debug)]
pub enum Apply {
    /// Into a layer's own directory.
    Layer(Box<LayerWriter>),
    /// Into a directory that holds the layers below.
    Merge(Box<Merger>),
    /// Into another blob.
    Pack(Box<Packer>),
}

/// What is to be done with a blob, and what it must be.
#[derive(Debug, Default)]
pub struct Options {
    /// What it is called in messages.
    pub subject: String,
    /// Must be the digest of the bytes as they come.
    pub digest: Option<Digest>,
    /// Must be their number.
    pub size: Option<u64>,
    /// Whether it is a layer: then it is decompressed and its tar digested.
    pub layer: bool,
    /// Must be the digest of the tar.
    pub diff_id: Option<Digest>,
    /// Where the bytes are kept.
    pub store: Option<File>,
    /// How many of the first bytes are in it already: they go through the stages, and are not written.
    pub kept: u64,
    /// Whether it is a tar as it is, whatever its first bytes look like.
    pub plain: bool,
    /// What becomes of the tar.
    pub apply: Option<Apply>,
    /// How much of the tar is too much for its compressed bytes; what unpacks has its own.
    pub limits: Limits,
}

/// What a blob was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Of the bytes as they came.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// As its first bytes told.
    pub compression: Compression,
    /// Of the tar, where it is a layer.
    pub diff_id: Option<Digest>,
    /// What was unpacked.
    pub applied: AppliedLayer,
    /// What it was packed into, where it was.
    pub repacked: Option<Repacked>,
}
