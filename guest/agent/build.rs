//! Linker options of the agent alone.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=no-unwind.ld");
    // Tables for unwinding are of use only where panics unwind, which the agent's profile rules out: 500 KiB. Cargo calls its
    // profiles that inherit from release "release".
    if std::env::var("PROFILE").as_deref() == Ok("release") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{directory}/no-unwind.ld");
    }
}
