//! What happens at the desk, one event at a time.

use std::collections::HashMap;
use std::sync::Arc;

use outrank_core::{End, Key, OrderBook, Placement, Request, RequestId, Score, StepSample, Timestamp};
use tokio::sync::oneshot;

use super::overrun::Overrun;
use super::site::Site;
use super::tenants::Shares;
use super::{Admitted, Ask, Ending, Progress, Refused, Turn, Verdict};
use crate::clock::Clock;
use crate::config::{GatewayConfig, Mode};
use crate::tenants::Class;

/// Steps that one answer teaches the cost model, at most.
const MAX_STEPS_LEARNED: u32 = 32;
/// Answers before predicted waits are believed.
pub(super) const MIN_ANSWERS: u64 = 20;
/// How often the work at each upstream is counted anew, in seconds: where it decides who gets what, and where it is told only.
const RECOUNT_S: f64 = 0.05;
const RECOUNT_ALONE_S: f64 = 0.5;
/// What clients are told to wait while no upstream answers, in seconds.
const OUTAGE_RETRY_S: f64 = 2.0;

/// Requests for one model.
#[derive(Debug)]
pub(super) struct Pool {
    /// `None` for models that no upstream lists.
    pub(super) model: Option<String>,
    /// Those that wait here and those that went from here.
    pub(super) held: OrderBook,
    /// Those whose upstream orders them.
    pub(super) stamped: OrderBook,
    /// Upstreams that serve the model.
    pub(super) sites: Vec<usize>,
    /// Since when none of them has been available.
    pub(super) unavailable_since: Option<Timestamp>,
    /// Answers that have ended.
    pub(super) answers: u64,
    /// How far waits outlast what was predicted of them.
    pub(super) overrun: Overrun,
}

/// A request that has not ended.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) pool: usize,
    /// The lane of its tenant.
    pub(super) lane: usize,
    pub(super) class: Class,
    pub(super) stamped: bool,
    pub(super) streams: bool,
    /// Tells it that its turn has come; `None` unless it waits.
    pub(super) wake: Option<oneshot::Sender<Result<Turn, Refused>>>,
    /// Where it is.
    pub(super) site: Option<usize>,
    /// Which of the requests that were sent there it is.
    pub(super) nth: u64,
    /// The upstream that failed it last.
    pub(super) avoid: Option<usize>,
    pub(super) affinity: Option<u64>,
    pub(super) prompt_tokens: u32,
    pub(super) progress: Arc<Progress>,
    /// What it adds to the work of its upstream.
    pub(super) work_tokens: f64,
    pub(super) began: bool,
    /// Seconds that it was thought to wait, if it had to.
    pub(super) predicted_wait_s: Option<f64>,
    pub(super) submitted: Timestamp,
}

/// The state of the desk.
pub(super) struct State {
    pub(super) config: Arc<GatewayConfig>,
    pub(super) sites: Vec<Site>,
    pub(super) pools: Vec<Pool>,
    /// Pools by model; the one of models that nobody lists under the empty name.
    pub(super) by_model: HashMap<String, usize>,
    pub(super) live: HashMap<u64, Live>,
    pub(super) weights: Vec<(usize, f64)>,
    pub(super) shares: Shares,
    pub(super) waiting: usize,
    next_id: u64,
    recounted: Timestamp,
}

impl State {
    pub(super) fn new(config: Arc<GatewayConfig>) -> Self {
        Self {
            config,
            sites: Vec::new(),
            pools: Vec::new(),
            by_model: HashMap::new(),
            live: HashMap::new(),
            weights: Vec::new(),
            shares: Shares::default(),
            waiting: 0,
            next_id: 1,
            recounted: Timestamp::ZERO,
        }
    }

    pub(super) fn submit(
        &mut self,
        now: Timestamp,
        clock: &Clock,
        ask: &Ask,
        progress: Arc<Progress>,
    ) -> Result<(u64, Admitted, Placement), Refused> {
        let pool = self.pool_of(&ask.model)?;
        self.recount(now);
        self.shares.asked(now, ask.lane);
        let site = self.choose(now, pool, ask.lane, ask.affinity);
        if site.is_none() {
            self.check_queue(now, pool, ask)?;
        }
        let id = self.next_id;
        self.next_id += 1;
        let stamped = site.is_some_and(|site| self.sites[site].upstream.mode == Mode::Stamp);
        let live = Live {
            pool,
            lane: ask.lane,
            class: ask.class,
            stamped,
            streams: ask.streams,
            wake: None,
            site: None,
            nth: 0,
            avoid: None,
            affinity: ask.affinity,
            prompt_tokens: ask.prompt_tokens,
            progress,
            work_tokens: 0.0,
            began: false,
            predicted_wait_s: None,
            submitted: now,
        };
        self.live.insert(id, live);
        let request = self.request(id, ask);
        let arrival_s = ask.arrival.secs_f64();
        let book = self.book_of(pool, stamped);
        let key = book.submit_in(ask.lane, now, request, ask.score);
        let Some(site) = site else {
            let (wake, woken) = oneshot::channel();
            if let Some(live) = self.live.get_mut(&id) {
                live.wake = Some(wake);
            }
            self.waiting += 1;
            if let Some(deadline_s) = self.too_long(now, pool, id, ask) {
                let retry_after_s = self.retry_after_s(pool);
                self.leave(now, id, &Ending::ABORTED);
                return Err(Refused::WouldWait { wait_s: deadline_s, retry_after_s });
            }
            let predicted_wait_s = self.pools[pool].held.likely_start_s(RequestId(id));
            if let Some(live) = self.live.get_mut(&id) {
                live.predicted_wait_s = predicted_wait_s;
            }
            let placement = self.placement(pool, stamped, id);
            return Ok((id, Admitted::Waits(woken), placement));
        };
        let stamp = stamped.then(|| clock.unix_s(key.map_or(arrival_s, Key::value)));
        let turn = self.seat(now, id, site, stamp);
        Ok((id, Admitted::Now(turn), self.placement(pool, stamped, id)))
    }

    fn request(&self, id: u64, ask: &Ask) -> Request {
        let delay_s = match ask.class {
            Class::Interactive => 0.0,
            Class::Default => self.config.default_delay_s,
            Class::Batch => self.config.batch_delay_s,
        };
        Request {
            true_tokens: ask.true_tokens,
            limit_is_recorded: ask.limit_is_recorded,
            delay_s,
            ..Request::new(id, ask.arrival, ask.prompt_tokens.max(1), ask.max_tokens.max(1))
        }
    }

    /// Refuses what would have to wait and may not.
    fn check_queue(&mut self, now: Timestamp, pool: usize, ask: &Ask) -> Result<(), Refused> {
        if !self.pools[pool].sites.iter().any(|&site| self.sites[site].is_available(now)) {
            return Err(Refused::NoUpstream { retry_after_s: OUTAGE_RETRY_S });
        }
        let limit = self.config.max_queue_requests;
        if self.waiting >= limit {
            return Err(Refused::QueueFull { limit, retry_after_s: self.retry_after_s(pool) });
        }
        if self.weights.len() > 1 {
            // No tenant may take more than twice what it leaves free: there is always room for the others.
            let own_limit = 2 * (limit - self.waiting);
            let own: usize = self.pools.iter().map(|pool| pool.held.waiting_in(ask.lane)).sum();
            if own >= own_limit.max(1) {
                let retry_after_s = self.retry_after_s(pool);
                return Err(Refused::TenantQueueFull { limit: own, retry_after_s });
            }
        }
        Ok(())
    }

    /// How long a request will wait, if that is longer than it may.
    fn too_long(&mut self, now: Timestamp, pool: usize, id: u64, ask: &Ask) -> Option<f64> {
        if self.pools[pool].answers < MIN_ANSWERS {
            return None;
        }
        let start_s = self.pools[pool].held.likely_start_s(RequestId(id))?;
        let most_s = self.config.max_wait.as_secs_f64();
        let overrun = &mut self.pools[pool].overrun;
        let likely_s = overrun.likely_s(start_s);
        if likely_s > most_s {
            overrun.refused(start_s, most_s);
            return Some(likely_s);
        }
        (start_s > ask.deadline.since(now).as_secs_f64()).then_some(start_s)
    }

    /// Time in which a tenth of the work is done: when a retry makes sense.
    fn retry_after_s(&mut self, pool: usize) -> f64 {
        (0.1 * self.pools[pool].held.drain_s()).clamp(1.0, 60.0)
    }

    pub(super) fn placement(&mut self, pool: usize, stamped: bool, id: u64) -> Placement {
        self.book_of(pool, stamped)
            .placement(RequestId(id))
            .unwrap_or(Placement { position: 0, eta: outrank_core::Eta::default() })
    }

    pub(super) fn book_of(&mut self, pool: usize, stamped: bool) -> &mut OrderBook {
        let pool = &mut self.pools[pool];
        if stamped { &mut pool.stamped } else { &mut pool.held }
    }

    /// Gives a request a seat. In stamp mode the upstream decides when it starts, so it counts as waiting until its first token.
    fn seat(&mut self, now: Timestamp, id: u64, site: usize, stamp: Option<f64>) -> Turn {
        if let Some(&Live { pool, stamped, streams, lane, .. }) = self.live.get(&id) {
            if !stamped {
                self.shares.took(lane);
            }
            let book = self.book_of(pool, stamped);
            if !stamped {
                book.started(RequestId(id));
            }
            let work_tokens = book.remaining_tokens(RequestId(id));
            let nth = self.sites[site].took(now, work_tokens, streams);
            if let Some(live) = self.live.get_mut(&id) {
                (live.site, live.nth, live.work_tokens) = (Some(site), nth, work_tokens);
            }
            if stamped {
                let seats = self.sites[site].most_in_flight as u32;
                self.pools[pool].stamped.set_seats(seats);
            }
        }
        Turn { upstream: Arc::clone(&self.sites[site].upstream), stamp }
    }

    /// Sends on their way those who may go now.
    pub(super) fn pump(&mut self, now: Timestamp) {
        while let Some((pool, id, leaving)) = self.next(now) {
            let Some(live) = self.live.get_mut(&id) else { return };
            let (avoid, affinity) = (live.avoid, live.affinity);
            let leaves = leaving.contains(&live.lane);
            let Some(site) = self.choose_held(now, pool, leaves, avoid, affinity) else { return };
            let turn = self.seat(now, id, site, None);
            // One that was given up is about to leave.
            if let Some(live) = self.live.get_mut(&id)
                && let Some(wake) = live.wake.take()
            {
                self.waiting -= 1;
                // Once: one that an upstream failed waits for other reasons.
                if let Some(predicted_s) = live.predicted_wait_s.take() {
                    let limit_s = self.config.max_wait.as_secs_f64();
                    let waited_s = now.since(live.submitted).as_secs_f64();
                    self.pools[pool].overrun.note(predicted_s, limit_s, waited_s);
                }
                // Where the client has just left, its place is being given up too.
                let _ = wake.send(Ok(turn));
            }
        }
    }

    /// Who goes next, of all queues that have an upstream with room; and the lanes that leave seats free.
    fn next(&mut self, now: Timestamp) -> Option<(usize, u64, Vec<usize>)> {
        if self.waiting == 0 {
            return None;
        }
        let mut leaving = None;
        let mut first: Option<(Key, usize, u64)> = None;
        for at in 0..self.pools.len() {
            if self.pools[at].held.occupancy().0 == 0 || !self.has_room(now, at, false) {
                continue;
            }
            let leaving = leaving.get_or_insert_with(|| self.leaving_of_waiting(now));
            let all_may = leaving.is_empty() || self.has_room(now, at, true);
            let kept_out: &[usize] = if all_may { &[] } else { leaving };
            let pool = &mut self.pools[at];
            let seats: u32 = pool.sites.iter().map(|&site| self.sites[site].window.size()).sum();
            pool.held.set_seats(seats);
            if let Some((id, key)) = pool.held.next_but(now, kept_out)
                && first.is_none_or(|(best, ..)| key < best)
            {
                first = Some((key, at, id.0));
            }
        }
        first.map(|(_, pool, id)| (pool, id, leaving.unwrap_or_default()))
    }

    /// The lanes with requests that wait and leave the spare seats free.
    fn leaving_of_waiting(&self, now: Timestamp) -> Vec<usize> {
        self.leaving(now, self.shares.lanes().filter(|&lane| self.waits(lane)))
    }

    /// Whether an upstream of a queue takes a request that leaves its spare seats free, or not.
    fn has_room(&self, now: Timestamp, pool: usize, leaves: bool) -> bool {
        self.pools[pool].sites.iter().any(|&site| {
            let site = &self.sites[site];
            site.upstream.mode == Mode::Hold && self.has_room_at(now, site, leaves)
        })
    }

    pub(super) fn scored(&mut self, now: Timestamp, id: u64, score: Score) {
        let Some(live) = self.live.get(&id) else { return };
        let (pool, stamped) = (live.pool, live.stamped);
        self.book_of(pool, stamped).scored(now, RequestId(id), score);
    }

    pub(super) fn first_token(&mut self, now: Timestamp, id: u64, ttft_s: f64) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.began = true;
        let (pool, stamped, site) = (live.pool, live.stamped, live.site);
        let (nth, prompt_tokens) = (live.nth, live.prompt_tokens);
        if stamped {
            self.book_of(pool, true).started(RequestId(id));
        }
        if let Some(site) = site {
            let left_free = self.left_free(pool, site);
            self.sites[site].began(now, nth, prompt_tokens, ttft_s, left_free);
        }
        self.pump(now);
    }

    /// Seats of an upstream that those who wait for a queue may have to leave free. Its window is full without them.
    fn left_free(&self, pool: usize, site: usize) -> u32 {
        let somebody_waits = self.pools[pool].held.occupancy().0 > 0;
        if somebody_waits { self.spare_seats(&self.sites[site]) } else { 0 }
    }

    pub(super) fn again(
        &mut self,
        now: Timestamp,
        clock: &Clock,
        id: u64,
        verdict: Verdict,
    ) -> Result<Admitted, Refused> {
        self.release(now, id, verdict);
        let gone = Refused::NoUpstream { retry_after_s: OUTAGE_RETRY_S };
        let Some(live) = self.live.get_mut(&id) else { return Err(gone) };
        let (pool, stamped, avoid, affinity) = (live.pool, live.stamped, live.avoid, live.affinity);
        if stamped {
            let site = self.choose_stamped(now, pool, avoid, affinity).ok_or(gone)?;
            let key = self.pools[pool].stamped.explain(now, RequestId(id)).map(|known| known.key);
            let stamp = Some(clock.unix_s(key.unwrap_or(now.secs_f64())));
            return Ok(Admitted::Now(self.seat(now, id, site, stamp)));
        }
        let (wake, woken) = oneshot::channel();
        live.wake = Some(wake);
        self.pools[pool].held.paused(now, RequestId(id));
        self.waiting += 1;
        self.pump(now);
        Ok(Admitted::Waits(woken))
    }

    /// Takes a request off its upstream, which is judged.
    fn release(&mut self, now: Timestamp, id: u64, verdict: Verdict) {
        let Some(live) = self.live.get_mut(&id) else { return };
        let Some(at) = live.site.take() else { return };
        live.avoid = Some(at);
        let work_tokens = std::mem::take(&mut live.work_tokens);
        if !live.stamped {
            self.shares.released(live.lane);
        }
        let site = &mut self.sites[at];
        site.released(now, live.nth, work_tokens, std::mem::take(&mut live.began));
        match verdict {
            Verdict::Good => site.breaker.succeeded(),
            Verdict::None => site.breaker.abandoned(now),
            Verdict::Failed => {
                if site.breaker.failed(now) {
                    tracing::warn!(upstream = site.upstream.name, "ejected: too many of its requests fail");
                }
            }
            Verdict::Unreachable => {
                if std::mem::replace(&mut site.up, false) {
                    tracing::warn!(upstream = site.upstream.name, "cannot be reached");
                }
                site.breaker.abandoned(now);
            }
            Verdict::Overloaded { retry_after_s } => {
                site.overloaded(now, retry_after_s);
                site.breaker.abandoned(now);
            }
        }
    }

    pub(super) fn leave(&mut self, now: Timestamp, id: u64, ending: &Ending) {
        let at = self.live.get(&id).and_then(|live| live.site);
        self.release(now, id, ending.verdict);
        let Some(live) = self.live.remove(&id) else { return };
        self.waiting -= usize::from(live.wake.is_some());
        if let Some(at) = at
            && ending.verdict == Verdict::Good
            && ending.end != End::Aborted
        {
            let left_free = self.left_free(live.pool, at);
            let site = &mut self.sites[at];
            let taken = site.in_flight + 1 + left_free;
            site.window.ended(ending.e2e_s, ending.tokens, ending.streamed, taken);
            self.shares.served(ending.e2e_s);
        }
        let pool = &mut self.pools[live.pool];
        pool.answers += u64::from(ending.end != End::Aborted);
        let book = self.book_of(live.pool, live.stamped);
        if let Some(took_s) = ending.per_token_s {
            let step = StepSample { decodes: 1, took_s, ..StepSample::default() };
            (0..ending.tokens.min(MAX_STEPS_LEARNED)).for_each(|_| book.step_took(&step));
        }
        book.ended(now, RequestId(id), ending.tokens.max(live.progress.tokens()), ending.end);
        self.pump(now);
    }

    /// Counts what is still to come from each upstream, now and then.
    fn recount(&mut self, now: Timestamp) {
        let alone = self.sites.len() < 2 && self.weights.len() < 2;
        let interval_s = if alone { RECOUNT_ALONE_S } else { RECOUNT_S };
        if now.since(self.recounted).as_secs_f64() < interval_s {
            return;
        }
        self.recounted = now;
        self.sites.iter_mut().for_each(|site| site.work_tokens = 0.0);
        for (&id, live) in &mut self.live {
            let Some(site) = live.site else { continue };
            let pool = &mut self.pools[live.pool];
            let book = if live.stamped { &mut pool.stamped } else { &mut pool.held };
            book.generated(RequestId(id), live.progress.tokens());
            live.work_tokens = book.remaining_tokens(RequestId(id));
            self.sites[site].work_tokens += live.work_tokens;
        }
    }

    pub(super) fn tick(&mut self, now: Timestamp) {
        self.recount(now);
        let contend = self.shares.contend(now);
        self.sites.iter_mut().for_each(|site| site.window.share(contend));
        self.pump(now);
        for at in 0..self.pools.len() {
            let pool = &mut self.pools[at];
            if pool.sites.iter().any(|&site| self.sites[site].is_available(now)) {
                pool.unavailable_since = None;
                continue;
            }
            let since = *pool.unavailable_since.get_or_insert(now);
            if pool.held.occupancy().0 > 0 && now.since(since) >= self.config.outage_wait {
                self.give_up(at);
            }
        }
        self.retire();
    }

    /// Tells those who wait for a model that nobody serves it any more.
    fn give_up(&mut self, pool: usize) {
        for live in self.live.values_mut().filter(|live| live.pool == pool) {
            if let Some(wake) = live.wake.take() {
                self.waiting -= 1;
                let _ = wake.send(Err(Refused::NoUpstream { retry_after_s: OUTAGE_RETRY_S }));
            }
        }
    }
}
