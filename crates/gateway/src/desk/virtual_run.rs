//! The desk before one upstream in virtual time: it has a seat for each request that is sent there, or so many as are said.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use outrank_core::{End, Score, Timestamp};
use tokio::sync::oneshot::Receiver;

use super::state::State;
use super::{Admitted, Ask, Ending, Progress, Refused, Turn, Verdict};
use crate::clock::Clock;
use crate::config::GatewayConfig;
use crate::tenants::Class;
use crate::tls;
use crate::upstream::Upstream;

type Woken = Receiver<Result<Turn, Refused>>;

/// A request that has not ended.
struct Open {
    id: u64,
    lane: usize,
    tokens: u32,
    streams: bool,
    arrived_s: f64,
    sent_s: f64,
    started_s: f64,
    began: bool,
    progress: Arc<Progress>,
}

/// A request that was given a seat.
pub(super) struct Started {
    pub(super) lane: usize,
    pub(super) arrived_s: f64,
    /// When it was sent to the upstream.
    pub(super) sent_s: f64,
    pub(super) started_s: f64,
    /// What it takes from there on.
    pub(super) service_s: f64,
}

impl Started {
    pub(super) fn waited_s(&self) -> f64 {
        self.started_s - self.arrived_s
    }
}

/// The desk, the seats and who has them.
pub(super) struct Run {
    state: State,
    clock: Clock,
    first_token_s: f64,
    token_s: f64,
    engine_seats: usize,
    /// Whether the answers to the requests that come are streamed.
    pub(super) streams: bool,
    waiting: Vec<(Open, Woken)>,
    /// Those that wait inside the upstream.
    inside: VecDeque<Open>,
    running: Vec<Open>,
    pub(super) now_s: f64,
    pub(super) started: Vec<Started>,
    /// When requests were refused.
    pub(super) refused_s: Vec<f64>,
    /// When answers ended, and their tokens.
    pub(super) ended: Vec<(f64, u32)>,
}

impl Run {
    /// A desk of these settings with this window, tenants of these weights, and this time to the first token and to each after it.
    pub(super) fn new(
        config: GatewayConfig,
        window: impl Display,
        weights: &[f64],
        first_token_s: f64,
        token_s: f64,
    ) -> Self {
        let upstreams = vec![format!("http://127.0.0.1:1 models=m window={window}").parse().unwrap()];
        let config = Arc::new(GatewayConfig { upstreams, ..config });
        let upstream = Upstream::new(&config.upstreams[0], None, &config, &tls::client().unwrap()).unwrap();
        let mut state = State::new(Arc::clone(&config));
        state.reconfigure(Timestamp::ZERO, config, &[Arc::new(upstream)]).unwrap();
        state.set_weights(weights.iter().copied().enumerate().collect());
        Self {
            state,
            clock: Clock::start_at(Duration::ZERO),
            first_token_s,
            token_s,
            engine_seats: usize::MAX,
            streams: true,
            waiting: Vec::new(),
            inside: VecDeque::new(),
            running: Vec::new(),
            now_s: 0.0,
            started: Vec::new(),
            refused_s: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// The upstream works on so many requests at once, and the others wait there in order of arrival.
    pub(super) fn set_engine_seats(&mut self, seats: u32) {
        self.engine_seats = seats as usize;
    }

    /// From now on these are the tenants, and their weights.
    pub(super) fn set_weights(&mut self, weights: &[(usize, f64)]) {
        self.state.set_weights(weights.to_vec());
    }

    /// The upstream says that it works on so many requests at once.
    pub(super) fn engine_says(&mut self, seats: u32) {
        let upstream = Arc::clone(&self.state.sites[0].upstream);
        self.state.engine_says(Timestamp::from_secs_f64(self.now_s), &upstream, Some(seats));
    }

    /// A health check of the upstream fails, and the next one does not.
    pub(super) fn engine_starts_again(&mut self) {
        let upstream = Arc::clone(&self.state.sites[0].upstream);
        for up in [false, true] {
            self.state.probed(Timestamp::from_secs_f64(self.now_s), &upstream, up, None);
        }
    }

    /// What only time changes is looked after.
    pub(super) fn tick(&mut self) {
        self.state.tick(Timestamp::from_secs_f64(self.now_s));
    }

    /// Requests that may be at the upstream at once.
    pub(super) fn window(&self) -> u32 {
        self.state.seats()
    }

    fn service_s(&self, tokens: u32) -> f64 {
        self.first_token_s + f64::from(tokens - 1) * self.token_s
    }

    /// A request of a tenant comes, whose answer will be so long and is thought to be so long.
    pub(super) fn arrive(&mut self, lane: usize, tokens: u32, guess: f64) {
        let (now, progress) = (Timestamp::from_secs_f64(self.now_s), Arc::new(Progress::default()));
        let ask = Ask {
            model: "m".into(),
            prompt_tokens: 10,
            max_tokens: 1000,
            true_tokens: None,
            limit_is_recorded: false,
            score: Some(Score::new(guess as f32, 0.5).unwrap()),
            lane,
            class: Class::Default,
            arrival: now,
            deadline: Timestamp::from_secs_f64(self.now_s + 600.0),
            affinity: None,
            streams: self.streams,
        };
        let (arrived_s, streams) = (self.now_s, self.streams);
        let (sent_s, started_s) = (arrived_s, arrived_s);
        let open = |id, progress| Open {
            id,
            lane,
            tokens,
            streams,
            arrived_s,
            sent_s,
            started_s,
            began: false,
            progress,
        };
        match self.state.submit(now, &self.clock, &ask, Arc::clone(&progress)) {
            Err(_) => self.refused_s.push(arrived_s),
            Ok((id, Admitted::Now(_), _)) => self.send(open(id, progress)),
            Ok((id, Admitted::Waits(woken), _)) => self.waiting.push((open(id, progress), woken)),
        }
    }

    fn send(&mut self, mut open: Open) {
        open.sent_s = self.now_s;
        if self.running.len() < self.engine_seats {
            self.start(open);
        } else {
            self.inside.push_back(open);
        }
    }

    fn start(&mut self, mut open: Open) {
        open.started_s = self.now_s;
        let Open { lane, arrived_s, sent_s, started_s, tokens, .. } = open;
        let service_s = self.service_s(tokens);
        self.started.push(Started { lane, arrived_s, sent_s, started_s, service_s });
        self.running.push(open);
    }

    /// When a request on a seat has its first token, or after that its end.
    fn next_s(&self, open: &Open) -> f64 {
        open.started_s + if open.began { self.service_s(open.tokens) } else { self.first_token_s }
    }

    fn end(&mut self, at: usize) {
        let Open { id, tokens, streams, sent_s, .. } = self.running.swap_remove(at);
        self.ended.push((self.now_s, tokens));
        while self.running.len() < self.engine_seats
            && let Some(next) = self.inside.pop_front()
        {
            self.start(next);
        }
        let ending = Ending {
            tokens,
            end: End::Stopped,
            verdict: Verdict::Good,
            e2e_s: self.now_s - sent_s,
            per_token_s: streams.then_some(self.token_s),
            streamed: streams,
        };
        self.state.leave(Timestamp::from_secs_f64(self.now_s), id, &ending);
    }

    /// Lets time pass: answers begin and end, and those who wait are started.
    pub(super) fn until(&mut self, then_s: f64) {
        let first = |run: &Self| {
            let next_s = |&at: &usize| run.next_s(&run.running[at]);
            (0..run.running.len()).min_by(|a, b| next_s(a).total_cmp(&next_s(b)))
        };
        while let Some(at) = first(self)
            && self.next_s(&self.running[at]) <= then_s
        {
            self.now_s = self.next_s(&self.running[at]);
            if self.running[at].began {
                self.end(at);
            } else {
                let open = &mut self.running[at];
                open.began = true;
                if open.streams {
                    let ttft_s = self.now_s - open.sent_s;
                    self.state.first_token(Timestamp::from_secs_f64(self.now_s), open.id, ttft_s);
                }
            }
            let woken = |(_, woken): &mut (Open, Woken)| woken.try_recv().is_ok();
            let woken: Vec<_> = self.waiting.extract_if(.., woken).collect();
            woken.into_iter().for_each(|(open, _)| self.send(open));
        }
        self.now_s = then_s;
        for open in &self.running {
            let since_s = then_s - open.started_s - self.first_token_s;
            open.progress.set(if since_s < 0.0 { 0 } else { 1 + (since_s / self.token_s) as u32 });
        }
    }
}
