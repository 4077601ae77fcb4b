//! Builds the shim executable into `OUT_DIR`, so that every way of building the wheel ships it.
//!
//! Cargo has no stable way for a library to depend on a binary of its own package, so a second
//! cargo builds it, in a target directory of its own (the outer one is locked) and with the one
//! feature that keeps the engine's dependencies out.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=rust/src/shim");
    println!("cargo::rerun-if-changed=rust/build.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    if env::var_os("CARGO_FEATURE_SHIM").is_some() || env::var_os("CARGO_FEATURE_PYTHON").is_none() {
        return; // this is the inner build, or one that ships nothing
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let inner = out.join("shim");
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .args(["build", "--release", "--no-default-features", "--features", "shim"])
        .args(["--bin", "pyctrd-shim", "--target", &target, "--target-dir"])
        .arg(&inner)
        // The outer build's flags are for the extension module (clippy's wrapper, LTO of the profile).
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s");
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "building pyctrd-shim failed: {status}");
    let built = inner.join(&target).join("release").join("pyctrd-shim");
    std::fs::copy(&built, out.join("pyctrd-shim")).expect("the built shim is copied to OUT_DIR");
}
