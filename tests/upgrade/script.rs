//! What a gateway says that knows nothing of what is new: each command, subscription and question, and their refusals.
//!
//! Nothing here depends on how long something takes: scenes last for hours, or are over at once, and then it is waited for.

use orchestrator_service::wire::{
    proto::{
        OrchestratorCommand, OrchestratorConfig, Query, SubscriptionCommand, WhenEmpty, orchestrator_command::Command,
        query, subscription_command::Command as Subscription,
    },
    subject,
};
use prost::Message as _;

use crate::support::messages::{
    adjust, config, force, get_state, get_stats, heartbeat, heartbeats, list, long_config, pause, previous,
    reconfigure, register, register_all, register_from, remove, reset, resume, seek, skip, start, start_again, status,
    stop, unregister, unregister_all,
};

/// One thing that is said, or waited for.
pub(crate) enum Step {
    /// A request and its subject.
    Ask(&'static str, Vec<u8>),
    /// A message without a reply subject.
    Tell(&'static str, Vec<u8>),
    /// So many updates of a stream come by themselves.
    Wait(&'static str, usize),
}

/// Something that is made of the handles that were given out so far, in order.
pub(crate) type Made<T> = Box<dyn Fn(&[u64]) -> T>;

/// All of it, in order.
pub(crate) fn steps() -> Vec<Made<Step>> {
    let mut steps = Vec::new();
    let mut step = |make: Made<Step>| steps.push(make);
    for command in commands() {
        step(Box::new(move |_| Step::Ask(subject::COMMAND, command.clone().encode_to_vec())));
    }
    for (command, is_answered) in audience() {
        step(Box::new(move |handles| {
            let payload = SubscriptionCommand { command: Some(command(handles)) }.encode_to_vec();
            if is_answered {
                Step::Ask(subject::SUBSCRIPTION, payload)
            } else {
                Step::Tell(subject::SUBSCRIPTION, payload)
            }
        }));
    }
    for command in while_it_plays() {
        step(Box::new(move |_| Step::Ask(subject::COMMAND, command.clone().encode_to_vec())));
    }
    for query in questions() {
        step(Box::new(move |_| Step::Ask(subject::QUERY, Query { query: Some(query.clone()) }.encode_to_vec())));
    }
    for subject in [subject::COMMAND, subject::SUBSCRIPTION, subject::QUERY] {
        step(Box::new(move |_| Step::Ask(subject, vec![0xff])));
        step(Box::new(move |_| Step::Ask(subject, Vec::new())));
    }
    // By themselves: two scenes and the end; and a removal.
    let brief = OrchestratorConfig { tick_interval_ms: Some(60_000), ..config(&[("a", 200), ("b", 200)]) };
    let of_nobody = OrchestratorConfig { idle_timeout_ms: Some(200), ..long_config() };
    step(Box::new(move |_| Step::Ask(subject::COMMAND, message(start("brief", brief.clone())).encode_to_vec())));
    step(Box::new(|_| Step::Ask(subject::SUBSCRIPTION, joined("brief"))));
    step(Box::new(|_| Step::Wait("brief", 2)));
    step(Box::new(|_| Step::Ask(subject::COMMAND, message(start_again("brief")).encode_to_vec())));
    step(Box::new(|_| Step::Wait("brief", 2)));
    step(Box::new(move |_| Step::Ask(subject::COMMAND, message(start("nobodys", of_nobody.clone())).encode_to_vec())));
    step(Box::new(|_| Step::Wait("nobodys", 1)));
    steps
}

fn message(command: Command) -> OrchestratorCommand {
    OrchestratorCommand { command: Some(command), ..Default::default() }
}

fn joined(stream_id: &str) -> Vec<u8> {
    SubscriptionCommand { command: Some(register(stream_id, "viewer")) }.encode_to_vec()
}

/// To streams that nobody watches.
fn commands() -> Vec<OrchestratorCommand> {
    let every = OrchestratorConfig {
        loop_scenes: true,
        when_empty: WhenEmpty::Freeze.into(),
        empty_grace_ms: Some(1_500),
        idle_timeout_ms: Some(600_000),
        ..long_config()
    };
    let id = "0b5f7a52-9d2e-4c53-9a3e-6f8d5a1c7e90".to_owned();
    let repeated =
        OrchestratorCommand { request_id: "once".into(), expected_revision: Some(1), ..message(seek("show", 100_000)) };
    let mut said: Vec<OrchestratorCommand> = vec![
        message(start("show", long_config())),
        message(start("show", long_config())),
        message(start("show", config(&[("Other", 1_000)]))),
        message(start(&id, every.clone())),
        message(start_again("nowhere")),
        message(start("", long_config())),
        message(start("a.b", long_config())),
        message(start("empty", config(&[]))),
        message(start("short", config(&[("a", 0)]))),
        message(start("ticks", OrchestratorConfig { tick_interval_ms: Some(1), ..long_config() })),
        message(pause("show")),
        message(pause("nowhere")),
        repeated.clone(),
        repeated.clone(),
        OrchestratorCommand { request_id: "once".into(), ..message(stop("show")) },
        OrchestratorCommand { expected_revision: Some(1), ..message(skip("show")) },
    ];
    said.extend(
        [
            skip("show"),
            previous("show"),
            force("show", "Main"),
            force("show", "Nowhere"),
            adjust("show", 60_000),
            adjust("show", -2_000_000_000),
            seek("show", 99_000_000),
            status("show", 5_000, "00:00:05:00"),
            reconfigure("show", config(&[("Main", 900_000), ("New", 900_000)])),
            stop("show"),
            stop("show"),
            skip("show"),
            start_again("show"),
            reset("show"),
            reconfigure("show", long_config()),
        ]
        .map(message),
    );
    said
}

/// Who comes, is heard of and leaves; and whether it is answered.
fn audience() -> Vec<(Made<Subscription>, bool)> {
    let said = |command: Subscription| -> Made<Subscription> { Box::new(move |_| command.clone()) };
    let uuid = "5c1a6a5e-1f4c-4d7e-8a55-0d5d6c3f2b11";
    vec![
        (said(register_from("show", uuid, "192.0.2.7:4711", 0)), true),
        (said(register_from("show", uuid, "[2001:db8::7]:4711", 7)), true),
        (said(register("show", "somebody")), true),
        (said(register("nowhere", "somebody")), true),
        (said(register("show", "")), true),
        (said(register_from("show", "x", "here", 0)), true),
        (said(register_all("show", &[("a", ""), ("b", "192.0.2.8:1"), ("c", "")])), true),
        (said(heartbeat("show", uuid, 7)), true),
        (said(heartbeat("show", uuid, 8)), true),
        (said(heartbeats("show", &["a", "nobody"], Vec::new())), true),
        (Box::new(|handles| heartbeats("", &[], handles.to_vec())), true),
        (said(register("show", "quiet")), false),
        (said(unregister("show", uuid, 7)), true),
        (said(unregister("show", uuid, 7)), true),
        (Box::new(|handles| unregister_all("", &[], handles[handles.len() - 1..].to_vec())), true),
        (said(unregister_all("show", &["a", "nobody"], Vec::new())), true),
    ]
}

/// To a stream that plays.
fn while_it_plays() -> Vec<OrchestratorCommand> {
    [
        pause("show"),
        pause("show"),
        resume("show"),
        seek("show", 100_000),
        skip("show"),
        force("show", "Outro"),
        previous("show"),
        adjust("show", 60_000),
        reset("show"),
        // Where it stops must not depend on how long it has played.
        seek("show", 200_000),
        stop("show"),
        start_again("show"),
        skip("show"),
        skip("show"),
        skip("show"),
        start_again("show"),
        remove("0b5f7a52-9d2e-4c53-9a3e-6f8d5a1c7e90"),
        remove("nowhere"),
    ]
    .map(message)
    .into()
}

fn questions() -> Vec<query::Query> {
    vec![
        get_state("show"),
        get_state("nowhere"),
        get_state(""),
        get_stats("show"),
        get_stats(""),
        get_stats("nowhere"),
        list(0, ""),
        list(1, ""),
        list(5_000, ""),
        list(10, "nonsense"),
    ]
}
