//! Content-addressed storage: staging, publishing, locks, and what is left over after a crash.
//!
//! On disk, below the root: `content/ingest/<id>/` while bytes arrive, then `content/blobs/<alg>/<hex>` and
//! `layers/<alg>/<hex>/`, with the contents of layers' files in `objects/` where a layer is an image. Nothing has a final name before its bytes were verified and flushed.

mod garbage;
mod locks;
mod objects;
mod publish;
mod staging;
mod upload;

pub use garbage::{ObjectsLock, Swept, count_objects, list_objects, sweep_objects};
pub use locks::FileLock;
pub use objects::{Key, NewObject, OBJECTS, ObjectWriter, Stored, is_object, object_path, open_object};
pub use publish::{Durability, Finished, publish};
pub use staging::{KeptBlob, Staging, empty_trash, sweep};
pub use upload::Upload;

/// In a layer's directory, the list of its contents' digests.
pub const DIGESTS: &str = "digests";
/// Where bytes are while they arrive.
pub const INGEST: &str = "content/ingest";
/// Where blobs are.
pub const BLOBS: &str = "content/blobs";
/// Where unpacked layers are.
pub const LAYERS: &str = "layers";
/// Where things go on their way out.
pub const TRASH: &str = "trash";
/// Everything below the root is the engine user's own.
pub const PRIVATE_MODE: u32 = 0o700;
