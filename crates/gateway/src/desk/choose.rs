//! Which replica a request goes to.

use std::hash::{DefaultHasher, Hash, Hasher};

use outrank_core::Timestamp;

use super::Refused;
use super::state::State;
use crate::config::Mode;

/// A preferred replica may have so many times the work of the least loaded one ...
const MAX_AFFINITY_LOAD: f64 = 2.0;
/// ... and so many tokens more.
const AFFINITY_SLACK_TOKENS: f64 = 1000.0;

impl State {
    /// The queue of a model.
    pub(super) fn pool_of(&self, model: &str) -> Result<usize, Refused> {
        let known = self.by_model.get(model).or_else(|| self.by_model.get(""));
        known.copied().ok_or(if self.sites.iter().all(|site| site.removed) {
            Refused::NoUpstream { retry_after_s: 1.0 }
        } else {
            Refused::UnknownModel
        })
    }

    /// An upstream with room: one that requests are held for, if nobody waits for it, or one that orders by itself.
    pub(super) fn choose(
        &self,
        now: Timestamp,
        pool: usize,
        nobody_waits: bool,
        avoid: Option<usize>,
        affinity: Option<u64>,
    ) -> Option<usize> {
        let held = if nobody_waits { self.choose_held(now, pool, avoid, affinity) } else { None };
        held.or_else(|| self.choose_stamped(now, pool, avoid, affinity))
    }

    pub(super) fn choose_held(
        &self,
        now: Timestamp,
        pool: usize,
        avoid: Option<usize>,
        affinity: Option<u64>,
    ) -> Option<usize> {
        self.choose_of(now, pool, Mode::Hold, avoid, affinity)
    }

    pub(super) fn choose_stamped(
        &self,
        now: Timestamp,
        pool: usize,
        avoid: Option<usize>,
        affinity: Option<u64>,
    ) -> Option<usize> {
        self.choose_of(now, pool, Mode::Stamp, avoid, affinity)
    }

    /// Of the upstreams with room, the one with the least work to do for its weight; or the one that the request prefers, if it is
    /// not much busier. One that has just failed the request comes last.
    fn choose_of(
        &self,
        now: Timestamp,
        pool: usize,
        mode: Mode,
        avoid: Option<usize>,
        affinity: Option<u64>,
    ) -> Option<usize> {
        let rooms = || {
            let sites = self.pools[pool].sites.iter().copied();
            sites.filter(move |&at| self.sites[at].upstream.mode == mode && self.sites[at].has_room(now))
        };
        let load = |&at: &usize| (u8::from(Some(at) == avoid), self.sites[at].load());
        let least = rooms().min_by(|a, b| {
            let ((avoided_a, load_a), (avoided_b, load_b)) = (load(a), load(b));
            avoided_a.cmp(&avoided_b).then(load_a.total_cmp(&load_b))
        })?;
        let Some(key) = affinity else { return Some(least) };
        // Rendezvous hashing over all that serve the model, so that nothing moves but what must.
        let preferred = self.pools[pool].sites.iter().copied().max_by_key(|&at| {
            let mut hasher = DefaultHasher::new();
            (key, &self.sites[at].upstream.name).hash(&mut hasher);
            hasher.finish()
        })?;
        let most = MAX_AFFINITY_LOAD * self.sites[least].load() + AFFINITY_SLACK_TOKENS;
        let fits = Some(preferred) != avoid && self.sites[preferred].load() <= most;
        Some(if fits && rooms().any(|at| at == preferred) { preferred } else { least })
    }
}
