//! Generates the messages, client and server of agent.proto into OUT_DIR.

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo:rerun-if-changed=agent.proto");
    Codegen::new()
        .out_dir(&out)
        .input("agent.proto")
        .include(".")
        .rust_protobuf()
        .customize(Customize::default())
        // No reflection: nobody asks a message for its fields' names, and in the agent every byte is guest memory.
        .rust_protobuf_customize(ProtobufCustomize::default().lite_runtime(true))
        .run()
        .expect("agent.proto is valid");
    // The generated mod.rs carries an inner attribute that include! cannot take.
    std::fs::write(
        format!("{out}/generated.rs"),
        format!(
            "#[path = {:?}]\npub mod agent;\n#[path = {:?}]\npub mod agent_ttrpc;\n",
            format!("{out}/agent.rs"),
            format!("{out}/agent_ttrpc.rs")
        ),
    )
    .expect("OUT_DIR is writable");
}
