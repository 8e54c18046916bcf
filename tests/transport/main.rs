//! One suite over both transports: what holds for a NATS server holds for the memory bus, and the other way round.
//!
//! Nothing here waits for a while and then looks. A reader that must have everything by now is behind a barrier
//! (see [`broker::flush_all`]); whatever else takes time is awaited as such, and [`LIMIT`] only ends a test that failed.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod credentials;
mod fake_server;
mod messages;
mod outages;
mod over_memory_alone;
mod over_nats_alone;
mod permissions;
mod protocol;

use broker::{Broker, SMALL, within_limit};
use messages::*;
use orchestrator_service::transport::memory::MemoryBus;
use outages::*;
use support::nats_server::{NatsServer, ServerOptions};

/// Runs each case over both transports, each time with a broker of its own.
macro_rules! on_both_transports {
    ($($case:ident $(with $options:ident)?),* $(,)?) => {
        mod over_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::within_limit(super::$case(super::memory_broker!($($options)?))).await;
                }
            )*
        }
        mod over_nats {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::within_limit(super::$case(super::nats_broker!($($options)?))).await;
                }
            )*
        }
    };
}

macro_rules! memory_broker {
    () => {
        super::Broker::Memory(super::MemoryBus::new())
    };
    (small_payloads) => {
        super::Broker::Memory(super::MemoryBus::with_max_payload(super::SMALL))
    };
}

macro_rules! nats_broker {
    () => {
        super::Broker::Nats(super::NatsServer::start())
    };
    (small_payloads) => {
        super::Broker::Nats(super::NatsServer::start_with(super::ServerOptions {
            max_payload: Some(super::SMALL),
            ..Default::default()
        }))
    };
}

use {memory_broker, nats_broker};

on_both_transports! {
    messages_arrive_in_the_order_in_which_they_were_published,
    a_wildcard_subscription_sees_one_order_across_subjects,
    a_star_is_one_token_and_a_last_greater_than_is_one_or_more,
    one_member_of_a_queue_group_gets_each_message,
    members_of_one_group_by_different_patterns_share_a_message,
    a_dropped_subscription_gets_nothing_more_and_its_group_goes_on,
    a_stopped_subscription_gives_what_has_come_and_then_the_end,
    a_request_is_answered,
    a_request_that_nobody_listens_to_is_refused_at_once,
    an_unanswered_request_times_out_and_leaves_nothing_behind,
    an_answer_that_is_not_accepted_is_waited_past,
    a_payload_over_the_limit_is_refused_and_the_connection_lives with small_payloads,
    a_subject_that_would_break_the_protocol_is_refused,
    while_the_broker_is_away_calls_fail_and_keep_their_messages,
    the_watch_shows_an_outage_and_a_return_as_another_generation,
    subscriptions_survive_an_outage,
    a_subscription_made_in_an_outage_works_after_it,
    a_waiting_request_fails_when_the_connection_goes,
    barriers_of_many_callers_confirm_what_was_published_before,
    a_barrier_that_waits_fails_when_the_connection_goes,
    a_barrier_of_a_silent_broker_times_out,
    an_unread_subscription_drops_and_counts_what_is_over_capacity,
    closing_sends_what_was_taken_and_ends_subscriptions_and_calls,
    closing_in_an_outage_ends_subscriptions_and_calls,
    dropping_a_transport_ends_its_subscriptions_only,
}
