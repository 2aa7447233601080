//! What the policy saves, or would save: what was served is replayed in both orders.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use outrank_core::policies::{PolicySettings, by_name};
use outrank_core::{
    End, MonitorSettings, OrderBook, Request, RequestId, Score, ServiceModel, Timestamp, UnsuitedPolicy,
};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Requests that are replayed together, at most.
const BATCH_REQUESTS: usize = 512;

/// One answered request, as the replay needs it.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// When it reached the host.
    pub arrival: Instant,
    /// From its seat to its end, in seconds, as measured.
    pub service_s: f64,
    /// Length of its prompt in tokens.
    pub prompt_tokens: u32,
    /// Output limit in tokens, as far as predictions may know it: not one that the answer is meant to reach.
    pub limit_tokens: u32,
    /// Length of its answer in tokens.
    pub output_tokens: u32,
    /// Whether the limit ended it.
    pub capped: bool,
    /// Its predicted length.
    pub score: Option<Score>,
}

/// A policy that is compared with order of arrival, on a host with so many seats.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Replay {
    /// Name of the policy.
    pub policy: String,
    /// Settings of the policies.
    pub settings: PolicySettings,
    /// When to stop following the ranker.
    pub monitor: MonitorSettings,
    /// First guess of the mean output length, in tokens.
    pub unscored_tokens: f64,
    /// Requests that are served at once.
    pub seats: u32,
}

/// A policy that cannot order the requests of a host in a replay.
#[derive(Clone, PartialEq, Debug, Error)]
pub enum ReplayError {
    /// There is none of this name.
    #[error("no policy is called {0:?}")]
    Unknown(String),
    /// Its keys change with every step, or while requests wait.
    #[error(transparent)]
    Unsuited(#[from] UnsuitedPolicy),
}

impl Replay {
    /// An order book under the policy of this name, for a host of these step costs.
    ///
    /// # Errors
    /// [`ReplayError`] if the policy is none, or needs to see every step.
    pub fn book(&self, policy: &str, service: ServiceModel) -> Result<OrderBook, ReplayError> {
        let policy =
            by_name(policy, &self.settings).ok_or_else(|| ReplayError::Unknown(policy.to_owned()))?;
        Ok(OrderBook::new(policy, self.seats, service, self.unscored_tokens, self.monitor)?)
    }

    /// Seconds of waiting that the policy saves on these requests against order of arrival; below 0 if it costs some. Both
    /// orders are given the same arrivals, and service times at the costs per token that fit the measured ones.
    ///
    /// # Errors
    /// As [`Self::book`].
    pub fn saved_s(&self, mut served: Vec<Served>) -> Result<f64, ReplayError> {
        served.sort_by_key(|it| it.arrival);
        let service = costs_of(&served);
        served
            .iter_mut()
            .for_each(|it| it.service_s = service.service_s(it.prompt_tokens, it.output_tokens.into()));
        let arrival_s = waited_s(self.book("fcfs", service)?, &served, self.seats);
        Ok(arrival_s - waited_s(self.book(&self.policy, service)?, &served, self.seats))
    }
}

/// What a token of prompt and of output costs: the least squares of the service times over the two lengths, a prompt's token at
/// most as dear as an output's, since prompts are read many tokens at a time.
///
/// Not what each request took itself: a host that was slow for a while, for whatever reason, was slow for those who ran then, and a
/// replay that kept their times would hold the slowness against whoever it puts first. Without the bound, noise in the times of
/// answers of one length can give all to the prompts, and a policy that goes by seconds of output is left with nothing to go by.
fn costs_of(served: &[Served]) -> ServiceModel {
    /// Deadlines must not all fall together where nothing took any time.
    const LEAST_S: f64 = 1e-9;
    let sum = |of: &dyn Fn(f64, f64, f64) -> f64| -> f64 {
        served.iter().map(|it| of(it.prompt_tokens.into(), it.output_tokens.into(), it.service_s)).sum()
    };
    let (pp, po, oo) = (sum(&|p, _, _| p * p), sum(&|p, o, _| p * o), sum(&|_, o, _| o * o));
    let (ps, os) = (sum(&|p, _, s| p * s), sum(&|_, o, s| o * s));
    let determinant = pp * oo - po * po;
    // Lengths that go together cannot be told apart: then the output explains all.
    let told_apart = determinant > 1e-9 * pp * oo;
    let free = if told_apart { (ps * oo - os * po) / determinant } else { 0.0 };
    let decode_at = |prefill_s: f64| (os - prefill_s * po) / oo;
    let (prefill_s, decode_s) = if oo > 0.0 && free <= 0.0 {
        (0.0, decode_at(0.0))
    } else if oo > 0.0 && free <= decode_at(free) {
        (free, decode_at(free))
    } else {
        let both = (ps + os) / (pp + 2.0 * po + oo);
        (both, both)
    };
    // Without any token all is 0 / 0, which `max` leaves out.
    ServiceModel { decode_s: decode_s.max(LEAST_S), prefill_s: prefill_s.max(0.0) }
}

/// Seconds that all wait together.
fn waited_s(mut book: OrderBook, served: &[Served], seats: u32) -> f64 {
    let arrival_s = |it: &Served| (it.arrival - served[0].arrival).as_secs_f64();
    let mut busy: Vec<(f64, usize)> = Vec::new();
    let (mut next, mut waited_s) = (0, 0.0);
    loop {
        let arrives_s = served.get(next).map(arrival_s);
        let ends = busy
            .iter()
            .enumerate()
            .min_by(|a, b| a.1.0.total_cmp(&b.1.0))
            .map(|(at, &(end_s, _))| (end_s, at));
        let now_s = match (arrives_s, ends) {
            (None, None) => return waited_s,
            (Some(arrives_s), Some((end_s, at))) if end_s <= arrives_s => {
                leave(&mut book, served, &mut busy, at, end_s)
            }
            (None, Some((end_s, at))) => leave(&mut book, served, &mut busy, at, end_s),
            (Some(arrives_s), _) => {
                let it = &served[next];
                let now = Timestamp::from_secs_f64(arrives_s);
                let request = Request::new(next as u64, now, it.prompt_tokens.max(1), it.limit_tokens.max(1));
                let request = Request { true_tokens: Some(it.output_tokens), ..request };
                book.submit(now, request, it.score);
                next += 1;
                arrives_s
            }
        };
        let now = Timestamp::from_secs_f64(now_s);
        while busy.len() < seats as usize
            && let Some((id, _)) = book.next(now)
        {
            book.started(id);
            let it = &served[id.0 as usize];
            waited_s += now_s - arrival_s(it);
            busy.push((now_s + it.service_s, id.0 as usize));
        }
    }
}

fn leave(
    book: &mut OrderBook,
    served: &[Served],
    busy: &mut Vec<(f64, usize)>,
    at: usize,
    end_s: f64,
) -> f64 {
    let (_, request) = busy.swap_remove(at);
    let (now, it) = (Timestamp::from_secs_f64(end_s), &served[request]);
    let end = if it.capped { End::Capped } else { End::Stopped };
    book.ended(now, RequestId(request as u64), it.output_tokens, end);
    end_s
}

/// Collects what was served, replays it beside the traffic, and adds up what the policy saves.
///
/// What is served is replayed whenever there are 512 answers, or when someone asks while nothing is under way: then nobody
/// waits whose waiting the replay would cut off.
#[derive(Debug, Default)]
pub struct Shadow {
    served: Mutex<Vec<Served>>,
    saved_s: Gauge<f64, AtomicU64>,
}

impl Shadow {
    /// Makes the seconds saved part of what is rendered.
    pub fn register(&self, to: &mut Registry) {
        to.register(
            "shadow_saved_seconds",
            "Waiting that the policy saved against arrival order, or would have saved in shadow mode, by replay of what was served",
            self.saved_s.clone(),
        );
    }

    /// Notes a request that was served. When there are enough, they are replayed on a thread of the runtime.
    pub fn note(&self, served: Served, replay: impl FnOnce() -> Replay) {
        let mut all = self.lock();
        all.push(served);
        if all.len() < BATCH_REQUESTS {
            return;
        }
        let batch = std::mem::take(&mut *all);
        drop(all);
        self.start(batch, replay());
    }

    /// Replays what there is, and waits for it. To be called when nothing is under way.
    pub async fn settle(&self, replay: impl FnOnce() -> Replay) {
        let batch = std::mem::take(&mut *self.lock());
        if batch.is_empty() {
            return;
        }
        // It ends early only with the runtime.
        let _ = self.start(batch, replay()).await;
    }

    fn start(&self, batch: Vec<Served>, replay: Replay) -> tokio::task::JoinHandle<()> {
        let saved_s = self.saved_s.clone();
        tokio::task::spawn_blocking(move || match replay.saved_s(batch) {
            Ok(seconds) => drop(saved_s.inc_by(seconds)),
            Err(error) => tracing::debug!(%error, "nothing is replayed"),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Served>> {
        // No holder leaves it half-changed.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(policy: &str, seats: u32) -> Replay {
        Replay {
            policy: policy.into(),
            settings: PolicySettings::default(),
            monitor: MonitorSettings::default(),
            unscored_tokens: 200.0,
            seats,
        }
    }

    /// A burst of requests that took so long each.
    fn burst(services_s: &[f64], predicted: bool) -> Vec<Served> {
        let arrival = Instant::now();
        let served = |&service_s: &f64| Served {
            arrival,
            service_s,
            prompt_tokens: 10,
            limit_tokens: u32::MAX,
            output_tokens: (service_s * 50.0) as u32,
            capped: false,
            score: predicted.then(|| Score::new((service_s * 50.0) as f32, 0.3).unwrap()),
        };
        services_s.iter().map(served).collect()
    }

    #[test]
    fn shortest_first_saves_what_pencil_and_paper_say() {
        // The first takes the seat. Arrival: 10 + 14 = 24 s of waiting. Shortest first: 10 + 11 = 21 s.
        let saved = replay("sjf", 1).saved_s(burst(&[10.0, 4.0, 1.0], true)).unwrap();
        assert!((saved - 3.0).abs() < 1e-6, "{saved}");
        let alone = replay("sjf", 3).saved_s(burst(&[10.0, 4.0, 1.0], true));
        assert_eq!(alone, Ok(0.0), "nobody waits");
    }

    #[test]
    fn a_host_that_was_slow_for_a_while_does_not_blame_the_order() {
        // By arrival, every other one is short; the second half ran when everything took ten times as long.
        let mut served = burst(&[8.0, 1.0].repeat(20), true);
        let fair = replay("sjf", 1).saved_s(served.clone()).unwrap();
        served[20..].iter_mut().for_each(|it| it.service_s *= 10.0);
        let saved = replay("sjf", 1).saved_s(served).unwrap();
        // All took 5.5 times as long on average, in either order.
        assert!((saved / (5.5 * fair) - 1.0).abs() < 0.01, "{saved} against {fair}");
    }

    #[test]
    fn costs_are_those_that_fit_what_was_measured_and_never_below_nothing() {
        // Milliseconds of a prompt token and an output token, from prompts, outputs and seconds.
        let costs = |measured: &[(u32, u32, f64)]| {
            let one = burst(&[1.0], false)[0];
            let served: Vec<Served> = measured
                .iter()
                .map(|&(prompt_tokens, output_tokens, service_s)| Served {
                    prompt_tokens,
                    output_tokens,
                    service_s,
                    ..one
                })
                .collect();
            let service = costs_of(&served);
            ((service.prefill_s * 1e6).round() / 1e3, (service.decode_s * 1e6).round() / 1e3)
        };
        assert_eq!(costs(&[(100, 10, 0.3), (1000, 10, 1.2), (100, 100, 2.1)]), (1.0, 20.0));
        assert_eq!(costs(&[(10, 10, 1.0), (20, 20, 2.0)]), (0.0, 100.0), "they cannot be told apart");
        assert_eq!(
            costs(&[(200, 10, 0.1), (10, 20, 0.4)]),
            (0.0, 18.0),
            "long prompts cost less than nothing"
        );
        // 0.011 + 0.028 over 110² + 70² tokens.
        let both = (2.294, 2.294);
        assert_eq!(costs(&[(10, 100, 0.1), (20, 50, 0.4)]), both, "long answers cost less than nothing");
        assert_eq!(costs(&[(10, 0, 1.0)]), (100.0, 100.0), "no output at all");
        assert_eq!(costs(&[(0, 0, 0.0)]), (0.0, 0.0));
        assert_eq!(costs(&[]), (0.0, 0.0));
    }

    #[test]
    fn one_that_was_held_up_leaves_the_others_an_order_to_replay() {
        // All answers have one length, so the one slow request, whose prompt is longer, would make all the prompts' cost.
        let one = burst(&[1.0], false)[0];
        let served = (0..40).map(|nth| Served {
            arrival: one.arrival + std::time::Duration::from_millis(nth),
            service_s: if nth == 0 { 0.06 } else { 0.006 },
            prompt_tokens: if nth == 0 { 2 } else { 1 },
            output_tokens: 3,
            score: Score::new(if nth % 2 == 0 { 900.0 } else { 4.0 }, 0.3).ok(),
            ..one
        });
        let saved = replay("outrank", 1).saved_s(served.collect()).unwrap();
        assert_ne!(saved, 0.0, "as if all had come in order");
    }

    #[test]
    fn without_scores_only_who_knows_the_lengths_saves() {
        let burst = || burst(&[10.0, 4.0, 1.0, 7.0], false);
        assert_eq!(replay("outrank", 1).saved_s(burst()), Ok(0.0));
        // Arrival: 10 + 14 + 15; known lengths: 10 + 11 + 15.
        let saved = replay("oracle-sjf", 1).saved_s(burst()).unwrap();
        assert!((saved - 3.0).abs() < 1e-6, "{saved}");
    }

    #[test]
    fn the_default_policy_saves_on_a_mixed_burst_and_on_a_host_of_any_speed() {
        let services: Vec<f64> = (0..200).map(|nth| if nth % 4 == 0 { 12.0 } else { 0.5 }).collect();
        let saved = replay("outrank", 4).saved_s(burst(&services, true)).unwrap();
        assert!(saved > 100.0, "{saved}");
        let fast = |it: Served| Served { service_s: it.service_s / 100.0, ..it };
        let fast = burst(&services, true).into_iter().map(fast).collect();
        let fast = replay("outrank", 4).saved_s(fast).unwrap();
        assert!((fast * 100.0 / saved - 1.0).abs() < 0.05, "{fast} against {saved}");
    }

    #[test]
    fn a_prediction_knows_the_limit_of_its_request_as_it_did_when_it_was_served() {
        // The second would be the longest by far, but for its limit.
        let mut served = burst(&[1.0, 0.1, 2.0], true);
        (served[1].score, served[1].capped) = (Score::new(4000.0, 0.3).ok(), true);
        let (unlimited, limited) = (served.clone(), {
            served[1].limit_tokens = served[1].output_tokens;
            served
        });
        // Arrival: 1 + 1.1. The other way round: 1 + 3.
        let saved_s = |served| replay("outrank", 1).saved_s(served).unwrap();
        assert!((saved_s(unlimited) + 1.9).abs() < 1e-6);
        assert!(saved_s(limited).abs() < 1e-6);
    }

    #[test]
    fn policies_that_must_see_every_step_are_refused() {
        let error = |policy: &str| replay(policy, 1).saved_s(burst(&[1.0], true)).unwrap_err();
        assert_eq!(error("ltr"), ReplayError::Unsuited(UnsuitedPolicy("ltr")));
        assert_eq!(error("nothing"), ReplayError::Unknown("nothing".into()));
        assert_eq!(replay("outrank", 1).saved_s(Vec::new()), Ok(0.0));
    }

    #[tokio::test]
    async fn what_was_served_is_replayed_once_when_there_is_enough_or_somebody_asks() {
        let shadow = Shadow::default();
        let seats_1 = || replay("sjf", 1);
        for served in burst(&[10.0, 4.0, 1.0], true) {
            shadow.note(served, seats_1);
        }
        assert_eq!(shadow.saved_s.get(), 0.0);
        for _ in 0..2 {
            shadow.settle(seats_1).await;
            assert!((shadow.saved_s.get() - 3.0).abs() < 1e-6, "{}", shadow.saved_s.get());
        }
        for served in burst(&[0.5; BATCH_REQUESTS], true) {
            shadow.note(served, seats_1);
        }
        assert!(shadow.lock().is_empty(), "a full batch is not kept");
    }
}
