//! Which replica a request goes to.

use std::hash::{DefaultHasher, Hash, Hasher};

use outrank_core::Timestamp;

use super::Refused;
use super::site::Site;
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

    /// An upstream with room for a request that comes: one that requests are held for, if nobody waits who could take the seat, or one
    /// that orders by itself.
    pub(super) fn choose(
        &self,
        now: Timestamp,
        pool: usize,
        lane: usize,
        affinity: Option<u64>,
    ) -> Option<usize> {
        let (held, leaves) = (&self.pools[pool].held, self.leaves(now, lane));
        // Who waits while a seat is free has to leave it; only who has not may pass.
        let keeps_seats = || self.pools[pool].sites.iter().any(|&at| self.spare_seats(&self.sites[at]) > 0);
        let is_kept_for_it = !leaves && held.waiting_in(lane) == 0 && keeps_seats();
        let may_go = held.occupancy().0 == 0 || is_kept_for_it;
        let held = if may_go { self.choose_held(now, pool, leaves, None, affinity) } else { None };
        held.or_else(|| self.choose_stamped(now, pool, None, affinity))
    }

    /// Seats of an upstream that tenants who have their share leave free. None while its window goes beyond the seats that the engine
    /// says it has: that is how too low a number is found out, and takes a full window.
    pub(super) fn spare_seats(&self, site: &Site) -> u32 {
        if !self.has_tenants() || site.upstream.mode != Mode::Hold {
            return 0;
        }
        let is_beyond = site.window.seats().is_some_and(|seats| site.window.size() > seats);
        if is_beyond { 0 } else { self.config.spare_seats_of(site.capacity()) }
    }

    /// Whether there is more than one tenant.
    fn has_tenants(&self) -> bool {
        self.weights.len() > 1
    }

    /// Whether one more request may be sent to an upstream now, leaving its spare seats free or not.
    pub(super) fn has_room_at(&self, now: Timestamp, site: &Site, leaves: bool) -> bool {
        site.has_room(now, if leaves { self.spare_seats(site) } else { 0 })
    }

    /// Whether a request of this tenant leaves the spare seats free at an upstream that it is held for.
    fn leaves(&self, now: Timestamp, lane: usize) -> bool {
        !self.leaving(now, [lane].into_iter()).is_empty()
    }

    /// Those of these lanes whose requests leave the spare seats free at an upstream that they are held for.
    pub(super) fn leaving(&self, now: Timestamp, lanes: impl Iterator<Item = usize>) -> Vec<usize> {
        if !self.has_tenants() || self.sites.iter().all(|site| self.spare_seats(site) == 0) {
            return Vec::new();
        }
        let held =
            self.sites.iter().filter(|site| site.upstream.mode == Mode::Hold && site.is_available(now));
        let seats = held.map(Site::capacity).fold(0, u32::saturating_add);
        let waits = |lane| self.waits(lane);
        lanes.filter(|&lane| self.shares.must_leave(now, lane, seats, waits)).collect()
    }

    /// Whether a request of this tenant waits.
    pub(super) fn waits(&self, lane: usize) -> bool {
        self.pools.iter().any(|pool| pool.held.waiting_in(lane) > 0)
    }

    pub(super) fn choose_held(
        &self,
        now: Timestamp,
        pool: usize,
        leaves: bool,
        avoid: Option<usize>,
        affinity: Option<u64>,
    ) -> Option<usize> {
        self.choose_of(now, pool, (Mode::Hold, leaves), avoid, affinity)
    }

    pub(super) fn choose_stamped(
        &self,
        now: Timestamp,
        pool: usize,
        avoid: Option<usize>,
        affinity: Option<u64>,
    ) -> Option<usize> {
        self.choose_of(now, pool, (Mode::Stamp, false), avoid, affinity)
    }

    /// Of the upstreams with room, the one with the least work to do for its weight; or the one that the request prefers, if it is
    /// not much busier. One that has just failed the request comes last.
    fn choose_of(
        &self,
        now: Timestamp,
        pool: usize,
        (mode, leaves): (Mode, bool),
        avoid: Option<usize>,
        affinity: Option<u64>,
    ) -> Option<usize> {
        let rooms = || {
            let sites = self.pools[pool].sites.iter().copied();
            sites.filter(move |&at| {
                let site = &self.sites[at];
                site.upstream.mode == mode && self.has_room_at(now, site, leaves)
            })
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
