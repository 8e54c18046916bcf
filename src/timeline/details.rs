//! What scenes may have besides name and length: ids, data, holds and hints. Most timelines have none of it, and then
//! there is nothing here.

use std::collections::BTreeMap;

use super::{AtEnd, Scene, TimelineError, scene::beginning};

/// How long a hold without an end is reckoned to be, ms: 35,000 years. A thousand of them, and of the longest scenes, do
/// not overflow.
pub(super) const FOREVER_MS: u64 = 1 << 50;

/// A time that was not given.
const NONE: u64 = u64::MAX;

/// The details of all scenes of a timeline. Shared by the timelines of adjusted passes, whose holds are as long.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Details {
    scenes: Box<[Detail]>,
    /// Ids and data, scene by scene.
    texts: Box<str>,
    /// The scenes whose hold does not lead to the next scene: it has no end, or a fallback.
    turns: Box<[u32]>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Detail {
    /// What the holds up to this scene's take together, ms.
    held_ms: u64,
    warn_ms: u64,
    danger_ms: u64,
    /// Where its id ends in `texts`; its data begins there.
    id_end: u32,
    data_end: u32,
    /// Where its hold leads.
    next: u32,
    fallback: Fallback,
}

/// How a fallback was named. The text is that of the scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fallback {
    None,
    Id,
    Name,
}

impl Details {
    /// Checks and packs them; none if no scene has any.
    pub(super) fn new(scenes: &[Scene<'_>]) -> Result<Option<Self>, TimelineError> {
        if scenes.iter().all(Scene::is_plain) {
            return Ok(None);
        }
        let fallbacks = fallbacks(scenes, &ids(scenes)?)?;
        let (mut packed, mut texts, mut turns) = (Vec::with_capacity(scenes.len()), String::new(), Vec::new());
        let mut held_ms = 0;
        for (place, (scene, (next, fallback))) in scenes.iter().zip(fallbacks).enumerate() {
            if let AtEnd::Hold { max_hold_ms, fallback } = scene.at_end {
                held_ms += max_hold_ms.unwrap_or(FOREVER_MS);
                if max_hold_ms.is_none() || fallback.is_some() {
                    turns.push(place as u32);
                }
            }
            texts.push_str(scene.id.unwrap_or_default());
            let id_end = end_of(&texts)?;
            texts.push_str(scene.data);
            packed.push(Detail {
                held_ms,
                warn_ms: scene.warn_ms.unwrap_or(NONE),
                danger_ms: scene.danger_ms.unwrap_or(NONE),
                id_end,
                data_end: end_of(&texts)?,
                next: next as u32,
                fallback,
            });
        }
        Ok(Some(Self { scenes: packed.into(), texts: texts.into(), turns: turns.into() }))
    }

    pub(super) fn id(&self, scene: u32) -> Option<&str> {
        let id = &self.texts[self.data_end_before(scene)..self.of(scene).id_end as usize];
        Some(id).filter(|id| !id.is_empty())
    }

    pub(super) fn data(&self, scene: u32) -> &str {
        let Detail { id_end, data_end, .. } = self.of(scene);
        &self.texts[*id_end as usize..*data_end as usize]
    }

    pub(super) fn warn_ms(&self, scene: u32) -> Option<u64> {
        Some(self.of(scene).warn_ms).filter(|ms| *ms != NONE)
    }

    pub(super) fn danger_ms(&self, scene: u32) -> Option<u64> {
        Some(self.of(scene).danger_ms).filter(|ms| *ms != NONE)
    }

    /// What the holds before a scene's take together, ms.
    pub(super) fn held_before_ms(&self, scene: u32) -> u64 {
        scene.checked_sub(1).map_or(0, |before| self.of(before).held_ms)
    }

    /// The same with its own.
    pub(super) fn held_ms(&self, scene: u32) -> u64 {
        self.of(scene).held_ms
    }

    /// Where a scene leads, with its hold if it has one: to that scene; nowhere if the hold has no end.
    pub(super) fn leads_to(&self, scene: u32) -> Option<u32> {
        let lasts = self.held_ms(scene) - self.held_before_ms(scene) == FOREVER_MS;
        (!lasts).then(|| self.of(scene).next)
    }

    /// The fallback as it was named, with the name of the scene it leads to.
    pub(super) fn fallback<'a>(&'a self, scene: u32, name_of: impl Fn(u32) -> &'a str) -> Option<&'a str> {
        let Detail { next, fallback, .. } = *self.of(scene);
        match fallback {
            Fallback::None => None,
            Fallback::Id => self.id(next),
            Fallback::Name => Some(name_of(next)),
        }
    }

    pub(super) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The first of the turns for which this is false, of which it is true for some and then for none.
    pub(super) fn first_turn(&self, is_over: impl Fn(u32) -> bool) -> Option<u32> {
        self.turns.get(self.turns.partition_point(|scene| is_over(*scene))).copied()
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.scenes) + self.texts.len() + size_of_val(&*self.turns)
    }

    fn data_end_before(&self, scene: u32) -> usize {
        scene.checked_sub(1).map_or(0, |before| self.of(before).data_end as usize)
    }

    fn of(&self, scene: u32) -> &Detail {
        &self.scenes[scene as usize]
    }
}

fn end_of(texts: &str) -> Result<u32, TimelineError> {
    u32::try_from(texts.len()).map_err(|_| TimelineError::TextsTooLong)
}

/// Which scene has which id.
fn ids<'a>(scenes: &[Scene<'a>]) -> Result<BTreeMap<&'a str, usize>, TimelineError> {
    let mut ids = BTreeMap::new();
    for (place, id) in scenes.iter().enumerate().filter_map(|(place, scene)| Some((place, scene.id?))) {
        if ids.insert(id, place).is_some() {
            return Err(TimelineError::IdTaken { place, id: id.to_owned() });
        }
    }
    Ok(ids)
}

/// Where each scene's hold leads, and how that was named.
fn fallbacks(scenes: &[Scene<'_>], ids: &BTreeMap<&str, usize>) -> Result<Vec<(usize, Fallback)>, TimelineError> {
    // From the last scene on, so that of several scenes of a name the next one is known.
    let mut later = BTreeMap::new();
    let mut fallbacks = Vec::with_capacity(scenes.len());
    for (place, scene) in scenes.iter().enumerate().rev() {
        fallbacks.push(match scene.at_end {
            AtEnd::Hold { fallback: Some(named), .. } => {
                let (next, how) = match ids.get(named) {
                    Some(next) => (Some(*next), Fallback::Id),
                    None => (later.get(named).copied(), Fallback::Name),
                };
                let next = next.filter(|next| *next > place);
                (next.ok_or_else(|| TimelineError::Fallback { place, named: beginning(named) })?, how)
            }
            _ => (place + 1, Fallback::None),
        });
        later.insert(scene.name, place);
    }
    fallbacks.reverse();
    Ok(fallbacks)
}
