//! The timer wheel against a sorted map.

use std::collections::BTreeMap;

use orchestrator_service::engine::{
    Tick,
    wheel::{Link, Nodes, Wheel},
};

use crate::bytes::Choices;

const ENTRIES: u8 = 16;
const MAX_STEPS: usize = 300;

struct Entries(Vec<(Link, Tick)>);

impl Nodes for Entries {
    fn link(&self, key: u32) -> Link {
        self.0[key as usize].0
    }

    fn link_mut(&mut self, key: u32) -> &mut Link {
        &mut self.0[key as usize].0
    }

    fn deadline(&self, key: u32) -> Tick {
        self.0[key as usize].1
    }
}

pub fn check(input: &[u8]) {
    let mut choices = Choices::new(input);
    let mut wheel = Wheel::new();
    let mut entries = Entries(vec![(Link::UNLINKED, Tick(0)); ENTRIES.into()]);
    let mut sorted: BTreeMap<u32, Tick> = BTreeMap::new();
    let mut now = Tick(choices.number() >> 22);
    for _ in 0..MAX_STEPS {
        if choices.is_empty() {
            break;
        }
        let key = u32::from(choices.below(ENTRIES));
        match choices.below(4) {
            0 => {
                let due = now.after(choices.number());
                wheel.cancel(&mut entries, key);
                entries.0[key as usize].1 = due;
                wheel.arm(&mut entries, key);
                sorted.insert(key, due);
            }
            1 => {
                wheel.cancel(&mut entries, key);
                sorted.remove(&key);
            }
            2 => {
                if let Some(due) = sorted.get_mut(&key) {
                    *due = due.after(choices.number());
                    entries.0[key as usize].1 = *due;
                }
            }
            _ => {
                if let (Some(look), Some(first)) = (wheel.next_look(), sorted.values().min()) {
                    assert!(look <= (*first).max(now), "looks at {look:?}, first due {first:?}");
                }
                // Some hundred years in all: the wheel's own span is far beyond.
                now = now.after(choices.number().min(1 << 37));
                let mut looks = 1 + usize::from(choices.byte());
                while let Some(key) = wheel.pop(&mut entries, now, &mut looks) {
                    let due = sorted.remove(&key);
                    assert!(due.is_some_and(|due| due <= now), "{key} came at {now:?}, it is due {due:?}");
                }
                assert!(looks == 0 || sorted.values().all(|due| *due > now), "something due was left");
            }
        }
        assert_eq!(wheel.check(&entries), sorted.len());
    }
}
