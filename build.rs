//! Compiles `proto/` with protox, a compiler in Rust, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let json = "#[derive(serde::Serialize, serde::Deserialize)]";
    let descriptors = protox::compile(["proto/orchestrator.proto"], ["proto"])?;
    prost_build::Config::new()
        // Prost strips the enum's name from its variants: `Mode::Running`, `Cause::Tick`.
        .message_attribute("StateUpdate", json)
        .message_attribute("Stats", json)
        .field_attribute("StateUpdate.mode", "#[serde(with = \"crate::wire::json::mode\")]")
        .field_attribute("StateUpdate.cause", "#[serde(with = \"crate::wire::json::cause\")]")
        .field_attribute("Stats.published_to", "#[serde(with = \"crate::wire::json::published_to\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
