//! Builds the shim executable into `OUT_DIR`, so that every way of building the wheel ships it.
//!
//! Cargo has no stable way for a library to depend on a binary of its own package, so a second
//! cargo builds it, in a target directory of its own (the outer one is locked) and with the one
//! feature that keeps the engine's dependencies out.

use std::env;
use std::path::{Path, PathBuf};
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
    // As a container's init it runs where there is no C library, or another one. Where none can be linked in (its static
    // form is a package of its own in some distributions), there is a shim all the same, and `--init` is refused.
    if !build(&inner, &target, true) {
        println!("cargo::warning=no static C library: containers cannot have pyctrd's init");
        assert!(build(&inner, &target, false), "building pyctrd-shim failed");
    }
    let built = inner.join(&target).join("release").join("pyctrd-shim");
    std::fs::copy(&built, out.join("pyctrd-shim")).expect("the built shim is copied to OUT_DIR");
}

/// Runs the second cargo; whether it succeeded.
fn build(inner: &Path, target: &str, is_static: bool) -> bool {
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    if is_static {
        let mut flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
        if !flags.is_empty() {
            flags.push('\x1f');
        }
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags + "-Ctarget-feature=+crt-static");
    }
    cargo
        .args(["build", "--release", "--no-default-features", "--features", "shim"])
        .args(["--bin", "pyctrd-shim", "--target", target, "--target-dir"])
        .arg(inner)
        // The outer build's flags are for the extension module (clippy's wrapper, LTO of the profile).
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s");
    cargo.status().expect("cargo runs").success()
}
