//! What the policy saves, or would save: what was served is replayed in both orders.

use std::sync::Arc;

use outrank_core::{End, OrderBook, Request, RequestId, Score, Timestamp};
use parking_lot::Mutex;

use crate::config::GatewayConfig;
use crate::metrics::Metrics;

/// Requests that are replayed together.
const BATCH_REQUESTS: usize = 512;

/// One served request, as the replay needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) arrival_s: f64,
    pub(crate) service_s: f64,
    pub(crate) prompt_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) score: Option<Score>,
}

/// Collects what was served, and replays it in batches.
#[derive(Debug, Default)]
pub(crate) struct Shadow(Mutex<Vec<Served>>);

impl Shadow {
    /// Notes a request that was served. Returns a batch when there are enough to replay.
    pub(crate) fn note(&self, served: Served) -> Option<Vec<Served>> {
        let mut all = self.0.lock();
        all.push(served);
        (all.len() >= BATCH_REQUESTS).then(|| std::mem::take(&mut *all))
    }
}

/// Seconds of waiting that the policy saves on these requests, with so many seats, against order of arrival; below 0 if it costs
/// some. Both orders are given the same arrivals and the service times that were measured.
pub(crate) fn saved_s(config: &GatewayConfig, mut served: Vec<Served>, seats: u32) -> Option<f64> {
    served.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
    let book = |policy: &str| {
        GatewayConfig { policy: policy.to_owned(), shadow: false, ..config.clone() }.book(seats).ok()
    };
    let waited = |book: OrderBook| waited_s(book, &served, seats);
    Some(waited(book("fcfs")?) - waited(book(&config.policy)?))
}

/// Seconds that all wait together.
fn waited_s(mut book: OrderBook, served: &[Served], seats: u32) -> f64 {
    let first_s = served.first().map_or(0.0, |it| it.arrival_s);
    let mut busy: Vec<(f64, usize)> = Vec::new();
    let (mut next, mut waited_s) = (0, 0.0);
    loop {
        let arrival_s = served.get(next).map(|it| it.arrival_s - first_s);
        let ends = busy
            .iter()
            .enumerate()
            .min_by(|a, b| a.1.0.total_cmp(&b.1.0))
            .map(|(at, &(end_s, _))| (end_s, at));
        let now_s = match (arrival_s, ends) {
            (None, None) => return waited_s,
            (Some(arrival_s), Some((end_s, at))) if end_s <= arrival_s => {
                leave(&mut book, served, &mut busy, at, end_s)
            }
            (None, Some((end_s, at))) => leave(&mut book, served, &mut busy, at, end_s),
            (Some(arrival_s), _) => {
                let it = &served[next];
                let now = Timestamp::from_secs_f64(arrival_s);
                let request = Request::new(next as u64, now, it.prompt_tokens.max(1), u32::MAX);
                book.submit(now, request, it.score);
                next += 1;
                arrival_s
            }
        };
        let now = Timestamp::from_secs_f64(now_s);
        while busy.len() < seats as usize
            && let Some((id, _)) = book.next(now)
        {
            book.started(id);
            let it = &served[id.0 as usize];
            waited_s += now_s - (it.arrival_s - first_s);
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
    let now = Timestamp::from_secs_f64(end_s);
    book.ended(now, RequestId(request as u64), served[request].output_tokens, End::Stopped);
    end_s
}

/// Replays a batch beside the traffic, and counts what comes out.
pub(crate) fn replay(config: Arc<GatewayConfig>, metrics: Arc<Metrics>, batch: Vec<Served>, seats: u32) {
    tokio::task::spawn_blocking(move || {
        if let Some(saved_s) = saved_s(&config, batch, seats.max(1)) {
            metrics.saved_s.inc_by(saved_s);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A burst on one seat.
    fn burst(services_s: &[f64], predicted: bool) -> Vec<Served> {
        let served = |&service_s: &f64| Served {
            arrival_s: 100.0,
            service_s,
            prompt_tokens: 10,
            output_tokens: (service_s * 50.0) as u32,
            score: predicted.then(|| Score::new((service_s * 50.0) as f32, 0.3).unwrap()),
        };
        services_s.iter().map(served).collect()
    }

    #[test]
    fn shortest_first_saves_what_pencil_and_paper_say() {
        let config = GatewayConfig { policy: "sjf".into(), ..GatewayConfig::default() };
        // The first takes the seat. Arrival: 10 + 14 = 24 s of waiting. Shortest first: 10 + 11 = 21 s.
        let saved = saved_s(&config, burst(&[10.0, 4.0, 1.0], true), 1).unwrap();
        assert!((saved - 3.0).abs() < 1e-6, "{saved}");
        assert_eq!(saved_s(&config, burst(&[10.0, 4.0, 1.0], true), 3).unwrap(), 0.0, "nobody waits");
    }

    #[test]
    fn without_scores_nothing_is_saved() {
        let config = GatewayConfig::default();
        assert_eq!(saved_s(&config, burst(&[10.0, 4.0, 1.0, 7.0], false), 1).unwrap(), 0.0);
    }

    #[test]
    fn the_default_policy_saves_on_a_mixed_burst() {
        let services: Vec<f64> = (0..200).map(|nth| if nth % 4 == 0 { 12.0 } else { 0.5 }).collect();
        assert!(saved_s(&GatewayConfig::default(), burst(&services, true), 4).unwrap() > 100.0);
    }
}
