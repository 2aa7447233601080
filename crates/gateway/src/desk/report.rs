//! What the desk tells of itself.

use outrank_core::{Explanation, RequestId, Timestamp, Trust};

use super::state::State;
use crate::tenants::Class;

/// What is known about a request.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) explanation: Explanation,
    pub(crate) class: Class,
    /// Where it is.
    pub(crate) upstream: Option<String>,
    /// Whether the upstream orders it.
    pub(crate) stamped: bool,
}

/// An upstream in figures.
#[derive(Clone, Debug)]
pub(crate) struct SiteReport {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) mode: &'static str,
    pub(crate) up: bool,
    pub(crate) breaker: i64,
    pub(crate) ejections: u64,
    pub(crate) in_flight: u32,
    pub(crate) window: Option<u32>,
    /// What the engine says of its seats, if that is believed.
    pub(crate) seats: Option<u32>,
    pub(crate) work_tokens: f64,
}

/// A queue in figures.
#[derive(Clone, Debug)]
pub(crate) struct PoolReport {
    pub(crate) model: String,
    /// Requests that wait, by class.
    pub(crate) waiting: [usize; 3],
    pub(crate) running: usize,
    pub(crate) backlog_s: f64,
    pub(crate) decode_s: f64,
    pub(crate) trusted: bool,
    pub(crate) concordance: Option<f64>,
    pub(crate) overtakes: u64,
}

impl State {
    pub(super) fn explain(&mut self, now: Timestamp, id: u64) -> Option<Known> {
        let live = self.live.get(&id)?;
        let pool = &mut self.pools[live.pool];
        let book = if live.stamped { &mut pool.stamped } else { &mut pool.held };
        book.generated(RequestId(id), live.progress.tokens());
        let mut explanation = book.explain(now, RequestId(id))?;
        explanation.generated_tokens = live.progress.tokens();
        let upstream = live.site.map(|site| self.sites[site].upstream.name.clone());
        Some(Known { explanation, class: live.class, upstream, stamped: live.stamped })
    }

    pub(super) fn is_ready(&self, now: Timestamp) -> bool {
        self.sites.iter().any(|site| site.is_available(now))
    }

    pub(super) fn seats(&self) -> u32 {
        let present = self.sites.iter().filter(|site| !site.removed);
        let seats = present.map(|site| {
            if site.capacity() == u32::MAX { site.most_in_flight as u32 } else { site.capacity() }
        });
        seats.fold(0, u32::saturating_add)
    }

    pub(super) fn sites_report(&self, now: Timestamp) -> Vec<SiteReport> {
        let present = self.sites.iter().filter(|site| !site.removed || site.in_flight > 0);
        present
            .map(|site| SiteReport {
                name: site.upstream.name.clone(),
                url: site.upstream.config.url.clone(),
                mode: site.upstream.mode_name(),
                up: site.up && !site.removed,
                breaker: site.breaker.level(now),
                ejections: site.breaker.opened(),
                in_flight: site.in_flight,
                window: (site.capacity() != u32::MAX).then(|| site.capacity()),
                seats: site.window.seats(),
                work_tokens: site.work_tokens,
            })
            .collect()
    }

    pub(super) fn pools_report(&self) -> Vec<PoolReport> {
        let mut reports: Vec<PoolReport> = self
            .pools
            .iter()
            .map(|pool| PoolReport {
                model: pool.model.clone().unwrap_or_default(),
                waiting: [0; 3],
                running: pool.held.occupancy().1 + pool.stamped.occupancy().1,
                backlog_s: pool.held.backlog_s().max(pool.stamped.backlog_s()),
                decode_s: pool.held.service().decode_s,
                // The verdict, not what it leads to: in shadow mode nobody follows it.
                trusted: [&pool.held, &pool.stamped]
                    .iter()
                    .all(|book| book.monitor().trust() == Trust::Trusted),
                concordance: pool.held.monitor().concordance().map(|(ratio, _)| ratio),
                overtakes: pool.held.overtakes(),
            })
            .collect();
        for live in self.live.values() {
            let waits = live.wake.is_some() || (live.stamped && !live.began);
            reports[live.pool].waiting[live.class as usize] += usize::from(waits);
        }
        reports
    }
}
