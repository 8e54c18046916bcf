//! Where an update goes beside its stream's own subject: to those who follow filters that it passes.

use std::sync::Arc;

use bytes::BytesMut;

use crate::{
    engine::StateUpdate,
    wire::subject::{self, Subject},
};

/// The filters of one update.
#[derive(Clone, Debug)]
pub(super) struct Filtered {
    stream_id: Arc<str>,
    /// Invariant: each once, in the order in which they were followed.
    tokens: Vec<u64>,
}

impl Filtered {
    /// Those that an update passes; nothing where it passes none.
    pub(super) fn of(update: &StateUpdate) -> Option<Box<Self>> {
        let tokens = update.filtered.as_deref()?.to_vec();
        Some(Box::new(Self { stream_id: Arc::clone(&update.stream_id), tokens }))
    }

    /// Their tokens.
    pub(super) fn tokens(&self) -> &[u64] {
        &self.tokens
    }

    /// Where they are followed. `buffer` is where the subjects are written: one allocation serves many.
    pub(super) fn subjects(&self, buffer: &mut BytesMut) -> impl Iterator<Item = Subject> {
        self.tokens.iter().map(|token| {
            subject::write_filtered(buffer, &self.stream_id, *token);
            let subject = Subject::from_utf8(buffer.split().freeze());
            // An id that exists is text.
            subject.unwrap_or_else(|_| subject::filtered("invalid", *token))
        })
    }

    /// This update takes the place of another, which is told to nobody any more: who was to have that has this one.
    pub(super) fn take_over(this: &mut Option<Box<Self>>, other: Option<Box<Self>>) {
        let Some(other) = other else { return };
        match this {
            None => *this = Some(other),
            Some(this) => {
                for token in other.tokens {
                    if !this.tokens.contains(&token) {
                        this.tokens.push(token);
                    }
                }
            }
        }
    }

    /// Takes out those of which that is so.
    pub(super) fn split_off(this: &mut Option<Box<Self>>, is_so: impl Fn(u64) -> bool) -> Option<Box<Self>> {
        let all = this.as_mut()?;
        let out: Vec<u64> = all.tokens.extract_if(.., |token| is_so(*token)).collect();
        let stream_id = Arc::clone(&all.stream_id);
        if all.tokens.is_empty() {
            *this = None;
        }
        (!out.is_empty()).then(|| Box::new(Self { stream_id, tokens: out }))
    }

    /// Keeps those whose subject is one of these.
    pub(super) fn keep(this: &mut Option<Box<Self>>, is_one: impl Fn(&str) -> bool) {
        let Some(all) = this else { return };
        let stream_id = Arc::clone(&all.stream_id);
        Self::split_off(this, |token| !is_one(&subject::filtered(&stream_id, token)));
    }
}
