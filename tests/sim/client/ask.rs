//! What gateways with a client ask it for besides viewers: commands, and whether there is a service.

use std::time::Duration;

use orchestrator_service::{
    client::{Command, ServiceState},
    wire::proto::orchestrator_command::Command as Wire,
};

use crate::{director::Conditions, net::Party, reading::stream_id, world::World};

/// How much longer than its options say a call may take: the pause of an attempt, and what the clock is rounded to.
const CALL_SLACK: Duration = Duration::from_millis(250);

impl World {
    /// A client sends a command, until it is answered or whoever asked loses patience.
    pub fn client_commands(
        &mut self,
        client: usize,
        stream: usize,
        command: Wire,
        request_id: usize,
        conditions: Conditions,
    ) {
        let Some(real) = self.clients.each[client].client.clone() else { return };
        let impatience = self.rng.chance(150).then(|| Duration::from_millis(self.rng.within(0, 3_000)));
        let longest = self.clients.each[client].options.total_timeout + CALL_SLACK;
        self.note_endless(stream, &command);
        let issued_by = self.sign(stream, &command);
        self.log.note(self.clock(), "client commands", &[client as u64, stream as u64, request_id as u64], &[]);
        let task = self.clients.runtime().spawn(async move {
            let stream_id = stream_id(stream);
            let mut call = real.command(&stream_id, typed(command)).issued_by(issued_by);
            call = call.request_id(format!("request {request_id}"));
            if let Some(revision) = conditions.revision {
                call = call.expected_revision(revision);
            }
            if let Some(epoch) = conditions.epoch {
                call = call.expected_epoch(epoch);
            }
            if let Some(scene) = conditions.scene {
                call = call.expected_scene(scene);
            }
            let patience = impatience.unwrap_or(longest);
            let answer = tokio::time::timeout(patience, call).await;
            assert!(answer.is_ok() || impatience.is_some(), "a call took longer than {patience:?}");
        });
        let tasks = &mut self.clients.each[client].tasks;
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
        self.clients.has_news = true;
    }

    /// The service was not there since the connection of that number broke: clients have found out.
    pub fn check_clients_miss_the_service(&mut self, generation: u64) {
        let link = self.link(Party::Ingress);
        if link.alive || link.generation != generation {
            return;
        }
        for (number, gateway) in self.clients.each.iter().enumerate() {
            let Some(service) = &gateway.service else { continue };
            let state = service.borrow();
            assert!(!state.is_alive(), "liveness: client {number} takes an absent service for alive");
        }
    }

    /// All is quiet: clients know that the service is there.
    pub fn check_clients_see_the_service(&self) {
        for (number, gateway) in self.clients.each.iter().enumerate() {
            let Some(service) = &gateway.service else { continue };
            let state = service.borrow();
            assert_eq!(*state, ServiceState::Alive, "liveness: of client {number}");
        }
    }
}

/// A command as a caller of the client gives it.
fn typed(command: Wire) -> Command {
    match command {
        Wire::Start(start) => Command::Start(start.config),
        Wire::Stop(_) => Command::Stop,
        Wire::Pause(_) => Command::Pause,
        Wire::Resume(_) => Command::Resume,
        Wire::ForceScene(force) => Command::ForceScene { scene_name: force.scene_name },
        Wire::SkipScene(_) => Command::SkipScene,
        Wire::PreviousScene(_) => Command::PreviousScene,
        Wire::Seek(seek) => Command::Seek { position_ms: seek.position_ms },
        Wire::AdjustScene(adjust) => Command::AdjustScene { delta_ms: adjust.delta_ms },
        Wire::UpdateStreamStatus(status) => Command::UpdateStreamStatus {
            is_streaming: status.is_streaming,
            stream_time: status.stream_time,
            timecode: status.timecode,
        },
        Wire::Reconfigure(reconfigure) => Command::Reconfigure(reconfigure.config.unwrap_or_default()),
        Wire::Reset(_) => Command::Reset,
        Wire::Remove(_) => Command::Remove,
    }
}
