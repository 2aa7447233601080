use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Hysteresis, Key, Load, Policy, Preemption, RequestView};

/// The virtual deadline, the default policy:
///
/// ```text
/// key      = arrival + patience / (1 + (short / worth)^steepness)                                       in seconds
/// patience = min(backlog_factor · backlog + service_factor · mean service, patience_s)
/// worth    = prefill + Gittins rank of the answer's length, as seconds of service
/// short    = the worth below which short_share of the recent work lies
/// ```
///
/// A request concedes a head start to later arrivals: almost none if it is short, almost all of `patience` if it is long.
/// Nearly all of the gain in mean latency comes from letting the short by, and what long ones concede to each other only
/// lengthens the tail. Where the line is, the work says: while requests that bring little of it go first, the others lose
/// little, however long the queue. (A queue that grows at load ρ and then drains makes nobody wait longer than
/// first come, first served would, as long as those who go first bring at most (ρ - 1)/ρ of the work.) Patience goes with
/// the backlog, the time that the queue would take to be served in any order: the same settings suit a queue of a second
/// and one of an hour, and where nothing waits nothing is reordered. Found by search in the simulator (`docs/policy.md`).
///
/// **The bound:** a request is overtaken only by arrivals within `patience` after its own, and never by one more than
/// `patience_s` later, whatever the ranker says. `patience_s = 0` is FCFS. Optimises the mean of s/token (the Gittins
/// rank, [`crate::Score::gittins_tokens`], weighs an answer by 1 / its length); long requests pay for short ones.
///
/// While a request runs, `worth` is added to its key and follows what it has generated: one about to end is hard to
/// displace, one that outlives its prediction falls back. A waiting request displaces a running one only where that pays:
/// the gain must exceed `min_gain_services` and a multiple of the cost of switching, a few requests a step, a few times
/// a request. That is rare by intention: mistakes are dear, the more so where KV must be computed again.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outrank {
    /// Seconds of patience per second of backlog.
    pub backlog_factor: f64,
    /// Seconds of patience per second of mean service, where even a short queue is worth ordering.
    pub service_factor: f64,
    /// Longest head start that any later arrival may have, in seconds.
    pub patience_s: f64,
    /// Share of the work whose requests count as short, 0 to 1.
    pub short_share: f64,
    /// How sharply short and long are told apart.
    pub steepness: f64,
    /// Share of the seats, 0 to 1, that may stay free for a few steps while many wait, so that several requests start in one
    /// step; 0 gives every free seat away at once, and so does any share of fewer than two seats.
    pub gather_share: f64,
    /// Preempt only where the keys differ by at least this many mean services.
    pub min_gain_services: f64,
    /// ... and of at least this multiple of the seconds that the switch costs.
    pub switch_cost_factor: f64,
    /// Requests paused in one step, at most; 0 switches preemption off.
    pub max_preemptions_per_step: u32,
    /// Times that one request may be paused.
    pub max_preemptions_per_request: u32,
}

impl Default for Outrank {
    fn default() -> Self {
        Self {
            backlog_factor: 3.0,
            service_factor: 4.0,
            patience_s: 300.0,
            short_share: 0.1,
            steepness: 4.0,
            gather_share: 1.0 / 64.0,
            min_gain_services: 12.0,
            switch_cost_factor: 20.0,
            max_preemptions_per_step: 1,
            max_preemptions_per_request: 2,
        }
    }
}

/// A setting outside its range.
#[derive(Clone, Copy, PartialEq, Debug, Error)]
#[error("{name} = {value}: must be {range}")]
pub struct OutOfRange {
    /// The setting.
    pub name: &'static str,
    /// What it was to be.
    pub value: f64,
    /// What it may be.
    pub range: &'static str,
}

impl Outrank {
    /// Checks that each setting means something.
    ///
    /// # Errors
    /// [`OutOfRange`] for a share that is not from 0 to 1, a negative number, or one that is not finite.
    pub fn check(&self) -> Result<(), OutOfRange> {
        let outside = |settings: &[(&'static str, f64)], most, range| {
            let found = settings.iter().find(|(_, value)| !(0.0..=most).contains(value));
            found.map_or(Ok(()), |&(name, value)| Err(OutOfRange { name, value, range }))
        };
        outside(
            &[("short_share", self.short_share), ("gather_share", self.gather_share)],
            1.0,
            "a share from 0 to 1",
        )?;
        let numbers = [
            ("backlog_factor", self.backlog_factor),
            ("service_factor", self.service_factor),
            ("patience_s", self.patience_s),
            ("steepness", self.steepness),
            ("min_gain_services", self.min_gain_services),
            ("switch_cost_factor", self.switch_cost_factor),
        ];
        outside(&numbers, f64::MAX, "a finite number of at least 0")
    }

    /// Seconds by which the longest request lets later arrivals by.
    fn patience_s(&self, load: Load) -> f64 {
        let wanted_s = self.backlog_factor * load.backlog_s + self.service_factor * load.mean_service_s;
        wanted_s.min(self.patience_s)
    }

    /// Seconds by which a request of this worth lets later arrivals by.
    fn head_start_s(&self, worth_s: f64, load: Load) -> f64 {
        let short_s = load.short_s.max(f64::MIN_POSITIVE);
        self.patience_s(load) / (1.0 + (short_s / worth_s).powf(self.steepness))
    }
}

impl Policy for Outrank {
    fn name(&self) -> &'static str {
        "outrank"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        let worth_s = view.worth_s();
        // On a seat the head start is not enough to go by: it levels off, and does not tell long from endless.
        let held = view.running && view.score.is_some() && self.patience_s > 0.0;
        let held_s = if held { worth_s } else { 0.0 };
        Key::new(view.request.arrival.secs_f64() + self.head_start_s(worth_s, view.load) + held_s)
    }

    fn follows_load(&self) -> bool {
        true
    }

    fn short_share(&self) -> f64 {
        self.short_share
    }

    fn gather_share(&self) -> f64 {
        self.gather_share
    }

    fn preemption(&self, load: Load) -> Preemption {
        if self.max_preemptions_per_step == 0 {
            return Preemption::Never;
        }
        Preemption::Limited(Hysteresis {
            min_gain: self.min_gain_services * load.mean_service_s,
            switch_cost_factor: self.switch_cost_factor,
            max_per_step: self.max_preemptions_per_step,
            max_per_request: self.max_preemptions_per_request,
        })
    }

    fn falls_back(&self) -> bool {
        true
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        let head_start_s = self.head_start_s(view.worth_s(), view.load);
        let basis = match view.score {
            Some(_) => format!("{:.0} tokens predicted to come", view.remaining_tokens()),
            None => format!("{:.0} tokens assumed (no score)", view.unscored.tokens),
        };
        format!(
            "{basis}: only arrivals within {head_start_s:.1} s after its own may overtake it now, within {:.0} s ever",
            self.patience_s
        )
    }
}
