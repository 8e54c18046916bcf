//! Compiles `proto/` with protox, a compiler in Rust, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let json = "#[derive(serde::Serialize, serde::Deserialize)]";
    let descriptors = protox::compile(["proto/orchestrator.proto"], ["proto"])?;
    prost_build::Config::new()
        // Prost strips the enum's name from its variants: `Mode::Running`, `Cause::Tick`.
        .message_attribute("StateUpdate", json)
        .message_attribute("Stats", json)
        .message_attribute("OrchestratorConfig", json)
        .message_attribute("SceneConfig", json)
        .message_attribute("SubscriberInfo", json)
        .message_attribute("HistoryEntry", json)
        .field_attribute("StateUpdate.mode", "#[serde(with = \"crate::wire::json::mode\")]")
        .field_attribute("StateUpdate.cause", "#[serde(with = \"crate::wire::json::cause\")]")
        .field_attribute("Stats.published_to", "#[serde(with = \"crate::wire::json::published_to\")]")
        .field_attribute("OrchestratorConfig.when_empty", "#[serde(with = \"crate::wire::json::when_empty\")]")
        .field_attribute("SceneConfig.at_end", "#[serde(with = \"crate::wire::json::at_end\")]")
        .field_attribute("HistoryEntry.action", "#[serde(with = \"crate::wire::json::history_action\")]")
        .field_attribute("HistoryEntry.mode", "#[serde(with = \"crate::wire::json::mode\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
