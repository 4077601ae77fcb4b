//! Starting the shim without forking the caller's process.
