//! Linker options of the agent alone.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=no-unwind.ld");
    // 16,000 relative relocations of a position-independent executable as bit maps: 370 KiB less to keep in memory and to read
    // at start.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // Tables for unwinding are of use only where panics unwind, which the agent's profile rules out: 500 KiB. Cargo calls its
    // profiles that inherit from release "release".
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{directory}/no-unwind.ld");
    }
}
