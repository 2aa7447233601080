//! What the scheduler remembers of one request.

use crate::{
    Explanation, Load, OvertakeLog, Placement, Policy, Rank, Request, RequestView, Score, ServiceModel,
    State, Timestamp, Trust, Unscored, blocks_for, work_mix::WorkMix,
};

/// Weight of the newest finished request in the running mean of output lengths.
const NEWEST_LENGTH_WEIGHT: f64 = 0.02;
/// Finished requests that the first guess of the mean counts as.
const FIRST_GUESS_REQUESTS: u64 = 8;
/// Output tokens after which the key of a running request is taken anew, where preemption is limited: such
/// preemption looks for gains of seconds, and a key moves by a few steps' time in between.
const KEY_REFRESH_TOKENS: u32 = 8;

/// A score, and what follows from it for one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prediction {
    pub(crate) score: Score,
    /// Expected output length within the limit of the request.
    pub(crate) tokens: f64,
}

impl Prediction {
    pub(crate) fn new(score: Score, max_tokens: u32) -> Self {
        Self { score, tokens: score.mean_tokens_within(max_tokens) }
    }
}

/// What is known beside the requests themselves.
#[derive(Clone, Debug)]
pub(crate) struct Estimates {
    /// Step costs as measured so far.
    pub(crate) service: ServiceModel,
    /// Recent mean output length.
    pub(crate) mean_tokens: f64,
    pub(crate) unscored: Unscored,
    pub(crate) load: Load,
    pub(crate) mix: WorkMix,
    /// Whether scores count: not while the ranker is distrusted.
    pub(crate) trust: Trust,
    /// The time of the last call.
    pub(crate) now: Timestamp,
}

impl Estimates {
    /// Before anything was measured.
    pub(crate) fn first(service: ServiceModel, unscored_tokens: f64) -> Self {
        let tokens = unscored_tokens.max(1.0);
        let unscored = Unscored { tokens, service_s: service.service_s(0, tokens) };
        Self {
            service,
            mean_tokens: tokens,
            unscored,
            load: Load { backlog_s: 0.0, mean_service_s: unscored.service_s, short_s: unscored.service_s },
            mix: WorkMix::default(),
            trust: Trust::Trusted,
            now: Timestamp::ZERO,
        }
    }

    /// Counts the length of the request that finished as the `finished`th.
    pub(crate) fn observe_length(&mut self, tokens: u32, finished: u64) {
        let seen = (FIRST_GUESS_REQUESTS + finished) as f64;
        self.mean_tokens += NEWEST_LENGTH_WEIGHT.max(1.0 / seen) * (f64::from(tokens) - self.mean_tokens);
    }

    /// Counts the work of a request that has just been scored.
    pub(crate) fn count(&mut self, entry: &Entry) {
        let view = entry.view(self);
        if view.score.is_none() || self.service.decode_s <= 0.0 {
            return;
        }
        let work_s = self.service.service_s(view.prefill_tokens, view.predicted_tokens);
        let (worth, work) = (view.worth_s() / self.service.decode_s, work_s / self.service.decode_s);
        self.mix.add(worth, work);
    }

    /// The load with this backlog, `short_share` of whose work counts as short.
    pub(crate) fn load(&self, backlog_s: f64, short_share: f64) -> Load {
        let mean_service_s = self.service.service_s(0, self.mean_tokens);
        let short_s =
            self.mix.below(short_share).map_or(mean_service_s, |worth| worth * self.service.decode_s);
        Load { backlog_s, mean_service_s, short_s }
    }
}

/// A request that has been accepted and has not left.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) request: Request,
    pub(crate) prediction: Option<Prediction>,
    /// Its place in the order of arrival.
    pub(crate) number: u64,
    /// Seconds of work, spread over all seats, that waited when it arrived.
    pub(crate) backlog_s: f64,
    pub(crate) state: State,
    /// Output tokens so far.
    pub(crate) generated_tokens: u32,
    /// Context tokens whose KV exists, on its seat or swapped out.
    pub(crate) computed_tokens: u32,
    /// Blocks it holds in the ledger; 0 unless it runs.
    pub(crate) kv_blocks: u32,
    /// Blocks that its swapped KV occupies outside the ledger.
    pub(crate) swapped_blocks: u32,
    /// Where it stands: exact while it waits, as of `ranked_at_tokens` while it runs.
    pub(crate) rank: Rank,
    /// Output tokens when its rank was last taken.
    pub(crate) ranked_at_tokens: u32,
    pub(crate) promoted: bool,
    /// Steps in the batch that its promotion still lasts.
    pub(crate) quantum_steps: u32,
    /// Step in which starvation prevention will promote it, if its timer runs.
    pub(crate) starves_at_step: Option<u64>,
    pub(crate) preemptions: u32,
    /// Step in which it was last paused.
    pub(crate) paused_at_step: u64,
    /// Step in which it was last in the batch.
    pub(crate) batched_at_step: u64,
    /// Later arrivals that had started when it did.
    pub(crate) overtaken_by: u64,
    /// Names it to the monitor; `None` before it starts and where it had no score then.
    pub(crate) ticket: Option<u64>,
    /// The lane of its tenant.
    pub(crate) lane: usize,
    /// Output tokens that its tenant has been charged for it.
    pub(crate) charged_tokens: f64,
}

impl Entry {
    /// Whether a running request's key is old enough to be taken anew.
    pub(crate) fn rank_is_stale(&self) -> bool {
        self.generated_tokens >= self.ranked_at_tokens + KEY_REFRESH_TOKENS
    }

    /// A request that has just arrived; its rank is still to be taken.
    pub(crate) fn arrived(
        request: Request,
        prediction: Option<Prediction>,
        number: u64,
        backlog_s: f64,
    ) -> Self {
        Self {
            request,
            prediction,
            number,
            backlog_s,
            state: State::Waiting,
            generated_tokens: 0,
            computed_tokens: 0,
            kv_blocks: 0,
            swapped_blocks: 0,
            rank: Rank { band: 1, key: crate::Key::new(0.0), number },
            ranked_at_tokens: 0,
            promoted: false,
            quantum_steps: 0,
            starves_at_step: None,
            preemptions: 0,
            paused_at_step: 0,
            batched_at_step: 0,
            overtaken_by: 0,
            ticket: None,
            lane: 0,
            charged_tokens: 0.0,
        }
    }

    /// Prompt and output so far, in tokens.
    pub(crate) fn context_tokens(&self) -> u32 {
        self.request.prompt_tokens + self.generated_tokens
    }

    /// Context tokens that have no KV yet: 1 when it decodes, more when it prefills.
    pub(crate) fn pending_tokens(&self) -> u32 {
        self.context_tokens() - self.computed_tokens
    }

    /// Blocks that its whole context occupies.
    pub(crate) fn context_blocks(&self) -> u32 {
        blocks_for(self.context_tokens())
    }

    /// What a policy sees of it.
    pub(crate) fn view<'a>(&'a self, estimates: &'a Estimates) -> RequestView<'a> {
        let prediction = self.prediction.filter(|_| estimates.trust == Trust::Trusted);
        RequestView {
            request: &self.request,
            score: prediction.map(|prediction| prediction.score),
            predicted_tokens: prediction.map_or(estimates.mean_tokens, |prediction| prediction.tokens),
            unscored: estimates.unscored,
            generated_tokens: self.generated_tokens,
            prefill_tokens: self.pending_tokens(),
            running: self.state == State::Running,
            service: &estimates.service,
            now: estimates.now,
            backlog_at_arrival_s: self.backlog_s,
            load: estimates.load,
        }
    }

    /// Its rank under `policy` as of now.
    pub(crate) fn rank_now(&self, policy: &dyn Policy, estimates: &Estimates) -> Rank {
        self.rank_seen(policy, &self.view(estimates))
    }

    /// Its rank as of now among those with a seat, whether it has one or not.
    pub(crate) fn rank_on_seat(&self, policy: &dyn Policy, estimates: &Estimates) -> Rank {
        self.rank_seen(policy, &RequestView { running: true, ..self.view(estimates) })
    }

    fn rank_seen(&self, policy: &dyn Policy, view: &RequestView<'_>) -> Rank {
        let key = policy.key(view);
        let key = if self.request.delay_s == 0.0 {
            key
        } else {
            crate::Key::new(key.value() + self.request.delay_s)
        };
        Rank { band: u8::from(!self.promoted), key, number: self.number }
    }

    /// Everything known about it, from whoever keeps the queue: where it stands there, and who started when.
    pub(crate) fn explain(
        &self,
        now: Timestamp,
        policy: &dyn Policy,
        estimates: &Estimates,
        Placement { position, eta }: Placement,
        overtakes: &OvertakeLog,
    ) -> Explanation {
        let view = self.view(estimates);
        Explanation {
            id: self.request.id,
            policy: policy.name().into(),
            state: self.state,
            position,
            score: view.score,
            generated_tokens: self.generated_tokens,
            remaining_tokens: view.remaining_tokens(),
            eta,
            waited_s: now.since(self.request.arrival).as_secs_f64(),
            key: self.rank_now(policy, estimates).key.value(),
            overtaken_by: match self.state {
                State::Waiting => overtakes.overtaken_by(self.number),
                State::Paused | State::Running => self.overtaken_by,
            },
            preemptions: self.preemptions,
            promoted: self.promoted,
            why: policy.why(&view),
        }
    }
}
