//! Scoring off the token path: one thread, a bounded queue, a deadline for everyone who waits, and a budget of CPU time
//! ([`crate::budget`]). Who may score by itself meanwhile is told in [`crate::spots`]. What answers teach is heard by a thread beside
//! it that gives way to all others ([`crate::lessons`]).

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrank_core::Score;
use outrank_ranker::Ranker;
use outrank_ranker::adapt::Open;
use tokio::sync::oneshot;

use crate::budget::{Budget, thread_cpu_time};
use crate::lessons::Lessons;
use crate::spots::Spots;
use crate::{ScorerMetrics, Unscored};

/// Predicts output lengths, and hears what they were. A closure from prompt to score is one.
pub trait Predictor: Send + Sync {
    /// Predicts the output length of a prompt, or declines. Several threads may ask at once.
    fn score(&self, text: &str) -> Option<Score>;

    /// An answer has ended. Only one thread tells, and meanwhile others ask for scores. `running` goes through all requests
    /// that run, and returns as large a share of them as is told of the answers that end.
    fn observe(&self, _answer: &Answer, _running: &dyn Fn() -> Vec<Open>) {}

    /// What has been learned from answers.
    fn learned(&self) -> Learned {
        Learned::default()
    }
}

impl<F: Fn(&str) -> Option<Score> + Send + Sync> Predictor for F {
    fn score(&self, text: &str) -> Option<Score> {
        self(text)
    }
}

/// An answer that has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Its prompt, as it was scored.
    pub text: Arc<str>,
    /// Output tokens.
    pub tokens: u32,
    /// Whether its limit ended it: by itself it would have been longer.
    pub censored: bool,
}

/// What a [`Predictor`] has learned from answers.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Learned {
    /// Answers heard of and remembered or used.
    pub answers: u64,
    /// Times that predictions changed by it.
    pub updates: u64,
    /// Kendall's tau-b of the predictor in force, on answers that it did not learn from.
    pub tau_b: Option<f64>,
}

/// Returns the requests that run, have arrived since a moment, and will be told of to [`Scorer::tell`] if their answers end. One that
/// waits does not run; neither does one whose answer has ended.
pub type Census = Box<dyn Fn(Instant) -> Vec<Open> + Send>;

/// The [`Predictor`] of a trained ranker that stays as it is.
pub fn ranker_scores(ranker: Ranker) -> Box<dyn Predictor> {
    Box::new(move |text: &str| Some(ranker.score(text)))
}

/// How often the scoring thread looks for work that nobody waits for. To wake it for each piece would cost more than the work.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Looks in vain after which the thread sleeps until it is woken.
const MAX_VAIN_LOOKS: u32 = 200;
/// What scoring may take.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ScorerLimits {
    /// Prompts that may wait to be scored, those that somebody waits for and the others, and answers to be learned from.
    pub max_queue: usize,
    /// CPU time that scoring may take, as a share (above 0, at most 1) of that of all cores.
    pub max_cpu_share: f64,
}

impl ScorerLimits {
    /// The share that scoring may take unless said otherwise: a flood is served at 31 of 32 parts of the rate of a host that scores
    /// nothing, and yet for each core of the host 120 prompts of 200 words, or 380 of 32, are scored a second, where a GPU serves tens.
    pub const DEFAULT_MAX_CPU_SHARE: f64 = 0.03125;
}

/// Hands prompts to the scoring thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Scorer {
    /// `None` without a ranker.
    queue: Option<Arc<Queue>>,
    lessons: Option<Lessons>,
    limits: ScorerLimits,
    metrics: ScorerMetrics,
}

/// Work for the scoring thread, and what does it.
struct Queue {
    predictor: Arc<dyn Predictor>,
    /// Where those who ask may score by themselves.
    spots: Spots,
    /// What scoring may still take.
    budget: Budget,
    /// The moment that the budget counts from.
    started: Instant,
    state: Mutex<QueueState>,
    /// Prompts that wait to be scored.
    pending: AtomicUsize,
    /// The thread has ended.
    dead: AtomicBool,
    /// The thread sleeps until it is woken.
    asleep: AtomicBool,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    /// By urgency.
    jobs: [VecDeque<Job>; 2],
    closed: bool,
}

/// A prompt to be scored.
struct Job {
    text: Arc<str>,
    asked: Instant,
    reply: Reply,
}

impl Job {
    /// Where it stands: scores that are waited for go first.
    fn urgency(&self) -> usize {
        match self.reply {
            Reply::Waiting(_) => 0,
            Reply::Then(_) => 1,
        }
    }
}

/// Where a score goes.
enum Reply {
    /// To somebody who waits for it.
    Waiting(oneshot::Sender<Score>),
    /// To whatever does something with it, on the scoring thread.
    Then(Box<dyn FnOnce(Score) + Send>),
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Prompts are never printed.
        f.write_str("Job")
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Scorer {
    /// Starts the threads, if there is something to score with. The census is taken when something is learned from it.
    pub fn start(
        predictor: Option<Box<dyn Predictor>>,
        limits: ScorerLimits,
        metrics: ScorerMetrics,
        census: Census,
    ) -> std::io::Result<Self> {
        let Some(predictor) = predictor else {
            return Ok(Self { queue: None, lessons: None, limits, metrics });
        };
        let predictor: Arc<dyn Predictor> = predictor.into();
        // Where the system does not say how many there are, there is one for sure.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let started = Instant::now();
        let queue = Arc::new(Queue {
            predictor: Arc::clone(&predictor),
            spots: Spots::default(),
            budget: Budget::new(limits.max_cpu_share, cores),
            started,
            state: Mutex::default(),
            pending: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            wake: Condvar::new(),
        });
        let worker = Worker { queue: Arc::clone(&queue) };
        let of_thread = metrics.clone();
        std::thread::Builder::new().name("outrank-scorer".into()).spawn(move || worker.run(&of_thread))?;
        let of_lessons = Arc::clone(&queue);
        let lessons =
            Lessons::start(predictor, limits.max_queue, started, metrics.clone(), census, move || {
                of_lessons.die();
            })?;
        Ok(Self { queue: Some(queue), lessons: Some(lessons), limits, metrics })
    }

    /// Whether the scoring thread lives; there is none without something to score with, and none after a panic.
    pub fn is_alive(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| !queue.dead.load(Ordering::Acquire))
    }

    /// Whether no prompt waits for its score.
    pub fn is_idle(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.pending.load(Ordering::Relaxed) == 0)
    }

    /// Asks for the score of a prompt, if it has a text. With a full queue, without budget, or from a scorer that has died, there will
    /// be none.
    pub fn ask(&self, text: impl FnOnce() -> Option<String>) -> PendingScore {
        let nothing = PendingScore { text: None, answer: None };
        if self.queue.is_none() {
            return nothing;
        }
        text().map_or(nothing, |text| self.ask_for(text.into()))
    }

    /// The score of a prompt, if it comes by the deadline: from the caller itself where that is cheaper than to wait for the thread
    /// and holds nobody up, see `spots.rs`. The deadline bounds the wait: after it none begins, and a score that is there when the
    /// caller looks is taken, whoever made it.
    pub async fn score_by(&self, text: Arc<str>, deadline: Instant) -> Option<Score> {
        let queue = self.queue.as_ref()?;
        let asked = Instant::now();
        if !self.may_ask(queue, asked) {
            return None;
        }
        if asked < deadline
            && let Some(spot) = queue.spots.take(text.len())
        {
            queue.watch();
            let scored = catch_unwind(AssertUnwindSafe(|| queue.score(&text)));
            drop(spot);
            queue.spots.took(text.len(), asked.elapsed());
            let Ok(score) = scored else {
                // As if it had been the thread.
                queue.die();
                return None;
            };
            if score.is_some() {
                self.metrics.score_latency.observe(asked.elapsed().as_secs_f64());
            }
            return score;
        }
        let mut pending = self.send(queue, text, asked);
        let score = pending.by(deadline).await;
        if score.is_none() && pending.may_come() {
            self.metrics.count_unscored(Unscored::Deadline);
        }
        score
    }

    fn ask_for(&self, text: Arc<str>) -> PendingScore {
        let Some(queue) = &self.queue else { return PendingScore { text: None, answer: None } };
        let asked = Instant::now();
        if !self.may_ask(queue, asked) {
            return PendingScore { text: Some(text), answer: None };
        }
        self.send(queue, text, asked)
    }

    /// Has a prompt scored within some milliseconds, and `then` called with the score on the scoring thread; nobody waits for it.
    /// With a full queue, without budget, or from a scorer that has died, there will be none.
    pub fn ask_then(&self, text: Arc<str>, then: impl FnOnce(Score) + Send + 'static) {
        let Some(queue) = &self.queue else { return };
        let asked = Instant::now();
        if self.may_ask(queue, asked) {
            self.push(queue, Job { text, asked, reply: Reply::Then(Box::new(then)) });
        }
    }

    /// Counts a prompt that its host does not ask for, because its request waits for nothing and the scoring thread is busy.
    pub fn pass_over(&self) {
        if self.is_alive() {
            self.metrics.count_unscored(Unscored::Busy);
        }
    }

    /// Whether there is somebody to score and something left to score with; counted if it is the latter.
    fn may_ask(&self, queue: &Queue, now: Instant) -> bool {
        !queue.dead.load(Ordering::Acquire) && queue.has_budget(now, &self.metrics)
    }

    /// Sends a prompt to the scoring thread.
    fn send(&self, queue: &Queue, text: Arc<str>, asked: Instant) -> PendingScore {
        let (reply, answer) = oneshot::channel();
        let job = Job { text: Arc::clone(&text), asked, reply: Reply::Waiting(reply) };
        let sent = self.push(queue, job);
        PendingScore { text: Some(text), answer: sent.then_some(answer) }
    }

    /// Adds a prompt, unless too many wait, which is counted, or the thread has died.
    fn push(&self, queue: &Queue, job: Job) -> bool {
        let sent = queue.push(job, self.limits.max_queue);
        if !sent && !queue.dead.load(Ordering::Acquire) {
            self.metrics.count_unscored(Unscored::QueueFull);
        }
        sent
    }

    /// Tells the predictor how long the answer to a request was that arrived then, unless it has too much to do. Of requests from before
    /// this scorer it hears nothing: those that have ended meanwhile are not to be had, and the longest of them run on.
    pub fn tell(&self, arrival: Instant, answer: Answer) {
        if let Some(lessons) = &self.lessons {
            lessons.tell(arrival, answer);
        }
    }
}

impl Drop for Scorer {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.lock().closed = true;
            queue.wake.notify_one();
        }
    }
}

impl Queue {
    /// Scores a prompt, at the expense of the budget.
    fn score(&self, text: &str) -> Option<Score> {
        let begun = thread_cpu_time();
        let score = self.predictor.score(text);
        self.budget.spend(thread_cpu_time().saturating_sub(begun), self.started.elapsed());
        score
    }

    /// Whether the budget has something left for a prompt, which is counted if not.
    fn has_budget(&self, now: Instant, metrics: &ScorerMetrics) -> bool {
        let is_left = self.budget.is_left(now.saturating_duration_since(self.started));
        if !is_left {
            metrics.count_unscored(Unscored::Budget);
        }
        is_left
    }

    /// Nothing is scored any more.
    fn die(&self) {
        self.dead.store(true, Ordering::Release);
        let mut state = self.lock();
        state.closed = true;
        // Who waits for a score is told that none will come.
        state.jobs.iter_mut().for_each(VecDeque::clear);
        drop(state);
        self.wake.notify_one();
    }

    /// Has the thread awake while a spot is taken: it looks after the workers that are left ([`Spots::look`]).
    fn watch(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            // Whoever falls asleep holds the lock until it can be woken.
            drop(self.lock());
            self.wake.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // No holder leaves it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job, unless too many of its urgency wait or the thread has died. One that is waited for wakes the thread.
    fn push(&self, job: Job, max_queue: usize) -> bool {
        if self.dead.load(Ordering::Acquire) {
            return false;
        }
        let urgency = job.urgency();
        let mut state = self.lock();
        if state.jobs[urgency].len() >= max_queue {
            return false;
        }
        state.jobs[urgency].push_back(job);
        let wake = urgency == 0 || self.asleep.load(Ordering::Relaxed);
        drop(state);
        self.pending.fetch_add(1, Ordering::Relaxed);
        if wake {
            self.wake.notify_one();
        }
        true
    }

    /// The most urgent job, once there is one; `None` when no more will come.
    fn take(&self) -> Option<Job> {
        let mut vain_looks = 0;
        let mut takes = self.spots.takes();
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.iter_mut().find_map(VecDeque::pop_front) {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            self.asleep.store(vain_looks >= MAX_VAIN_LOOKS, Ordering::SeqCst);
            // Who has taken a spot meanwhile may not have seen that nobody looks any more.
            let sleeps = vain_looks >= MAX_VAIN_LOOKS && self.spots.takes() == takes;
            state = if sleeps {
                self.wake.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                let waited = self.wake.wait_timeout(state, LOOK_INTERVAL);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
            self.asleep.store(false, Ordering::Relaxed);
            let now = self.spots.look(takes);
            vain_looks = if now == takes { vain_looks + 1 } else { 0 };
            takes = now;
        }
    }
}

/// The scoring thread. Dropping it, in a panic too, says that it has ended.
struct Worker {
    queue: Arc<Queue>,
}

impl Worker {
    fn run(self, metrics: &ScorerMetrics) {
        while let Some(job) = self.queue.take() {
            self.queue.pending.fetch_sub(1, Ordering::Relaxed);
            score(&self.queue, metrics, job);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.die();
    }
}

fn score(queue: &Queue, metrics: &ScorerMetrics, Job { text, asked, reply }: Job) {
    if matches!(&reply, Reply::Waiting(reply) if reply.is_closed()) {
        return;
    }
    let begun = Instant::now();
    // What was left when it was asked for may have gone to those before it. Who waits hears at once that there will be no score.
    if !queue.has_budget(begun, metrics) {
        return;
    }
    let score = queue.score(&text);
    queue.spots.took(text.len(), begun.elapsed());
    let Some(score) = score else { return };
    metrics.score_latency.observe(asked.elapsed().as_secs_f64());
    match reply {
        // The request may have left meanwhile.
        Reply::Waiting(reply) => drop(reply.send(score)),
        Reply::Then(then) => then(score),
    }
}

/// A score that has been asked for.
#[derive(Debug)]
pub struct PendingScore {
    text: Option<Arc<str>>,
    answer: Option<oneshot::Receiver<Score>>,
}

impl PendingScore {
    /// What is scored, if anything.
    pub fn text(&self) -> Option<Arc<str>> {
        self.text.clone()
    }

    /// Waits for the score until the deadline. Without one, it may still come ([`Self::late`]).
    pub async fn by(&mut self, deadline: Instant) -> Option<Score> {
        let answer = self.answer.as_mut()?;
        let answer = tokio::time::timeout_at(deadline.into(), answer).await.ok()?;
        self.answer = None;
        answer.ok()
    }

    /// Whether the score may still come.
    fn may_come(&self) -> bool {
        self.answer.is_some()
    }

    /// The score once it comes, if it did not by the deadline and still can.
    pub fn late(self) -> Option<impl Future<Output = Option<Score>> + Send + 'static> {
        self.answer.map(|answer| async { answer.await.ok() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LIMITS: ScorerLimits =
        ScorerLimits { max_queue: 4, max_cpu_share: ScorerLimits::DEFAULT_MAX_CPU_SHARE };

    /// The census of a host where nothing runs.
    fn nobody() -> Census {
        Box::new(|_| Vec::new())
    }

    fn scorer(predictor: impl Fn(&str) -> Option<Score> + Send + Sync + 'static) -> Scorer {
        Scorer::start(Some(Box::new(predictor)), LIMITS, ScorerMetrics::default(), nobody()).unwrap()
    }

    #[test]
    fn scores_come_whether_somebody_waits_or_not_and_after_a_long_sleep_too() {
        let scorer = scorer(|text| Score::new(text.len() as f32, 0.5).ok());
        for pause in [Duration::ZERO, LOOK_INTERVAL * (MAX_VAIN_LOOKS + 40)] {
            std::thread::sleep(pause);
            let (send, told) = channel();
            scorer.ask_then("four".into(), move |score| send.send(score.median_tokens()).unwrap());
            assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(4.0));
        }
        assert!(scorer.is_alive() && scorer.is_idle());
    }

    #[tokio::test]
    async fn a_score_that_is_waited_for_comes_at_once() {
        let scorer = scorer(|_| Score::new(7.0, 0.5).ok());
        let mut fastest = Duration::MAX;
        for _ in 0..50 {
            let asked = Instant::now();
            let score = scorer.ask(|| Some("x".into())).by(asked + Duration::from_secs(5)).await;
            assert_eq!(score.unwrap().median_tokens(), 7.0);
            fastest = fastest.min(asked.elapsed());
        }
        assert!(fastest < LOOK_INTERVAL / 2, "{fastest:?}");
    }

    #[tokio::test]
    async fn who_waits_for_a_score_waits_for_none_that_nobody_waits_for() {
        let ((begun, first_began), (go, held)) = (channel(), channel::<()>());
        let (held, order) = (Mutex::new(held), Arc::new(Mutex::new(Vec::new())));
        let scored = Arc::clone(&order);
        let scorer = scorer(move |text| {
            scored.lock().unwrap().push(text.to_owned());
            if text == "first" {
                begun.send(()).unwrap();
                held.lock().unwrap().recv().unwrap();
            }
            Score::new(7.0, 0.5).ok()
        });
        scorer.ask_then("first".into(), |_| {});
        first_began.recv().unwrap();
        let (send, told) = channel();
        scorer.ask_then("beside".into(), move |_| send.send(()).unwrap());
        let mut waited = scorer.ask(|| Some("waited for".into()));
        go.send(()).unwrap();
        assert!(waited.by(Instant::now() + Duration::from_secs(5)).await.is_some());
        told.recv().unwrap();
        assert_eq!(*order.lock().unwrap(), ["first", "waited for", "beside"]);
    }

    /// Scores, and does at each answer what it is told to.
    struct Hears<F>(F);

    impl<F: Fn() + Send + Sync> Predictor for Hears<F> {
        fn score(&self, _: &str) -> Option<Score> {
            Score::new(7.0, 0.5).ok()
        }

        fn observe(&self, _: &Answer, _: &dyn Fn() -> Vec<Open>) {
            self.0();
        }
    }

    /// A scorer that has been told of an answer.
    fn taught(hears: impl Fn() + Send + Sync + 'static) -> Scorer {
        let predictor = Box::new(Hears(hears));
        let scorer = Scorer::start(Some(predictor), LIMITS, ScorerMetrics::default(), nobody()).unwrap();
        assert!(scorer.is_alive());
        scorer.tell(Instant::now(), Answer { text: "lesson".into(), tokens: 3, censored: false });
        scorer
    }

    /// Waits until it scores no more.
    fn until_dead(scorer: &Scorer) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while scorer.is_alive() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_score_waits_for_no_lesson() {
        let ((begun, lesson_began), (go, held)) = (channel(), channel::<()>());
        let held = Mutex::new(held);
        let scorer = taught(move || {
            begun.send(()).unwrap();
            let _ = held.lock().unwrap().recv();
        });
        lesson_began.recv().unwrap();
        let mut waited = scorer.ask(|| Some("waited for".into()));
        assert!(waited.by(Instant::now() + Duration::from_secs(5)).await.is_some());
        drop(go);
    }

    #[test]
    fn a_panic_over_a_lesson_ends_scoring_too() {
        until_dead(&taught(|| panic!("broken")));
    }

    /// A scorer whose budget ends with its first score, and how often it has counted a reason.
    fn frugal(
        predictor: impl Fn(&str) -> Option<Score> + Send + Sync + 'static,
    ) -> (Scorer, impl Fn(Unscored) -> u64) {
        let metrics = ScorerMetrics::default();
        let limits = ScorerLimits { max_cpu_share: f64::MIN_POSITIVE, ..LIMITS };
        let scorer = Scorer::start(Some(Box::new(predictor)), limits, metrics.clone(), nobody()).unwrap();
        (scorer, move |why| metrics.unscored(why))
    }

    #[tokio::test]
    async fn without_budget_nothing_is_scored_whoever_asks_and_nobody_waits() {
        let (scorer, counted) = frugal(|_| Score::new(7.0, 0.5).ok());
        let deadline = Instant::now() + Duration::from_secs(60);
        assert!(scorer.score_by("first".into(), deadline).await.is_some());
        assert_eq!(scorer.score_by("x".into(), deadline).await, None);
        let mut pending = scorer.ask(|| Some("x".into()));
        assert_eq!(pending.text().as_deref(), Some("x"), "its answer can be learned from");
        assert_eq!(pending.by(deadline).await, None);
        assert!(pending.late().is_none());
        let (send, told) = channel();
        scorer.ask_then("x".into(), move |_| send.send(()).unwrap());
        assert!(told.recv().is_err(), "dropped, and not called");
        assert!(Instant::now() < deadline);
        assert_eq!((counted(Unscored::Budget), counted(Unscored::Deadline)), (3, 0));
        assert!(scorer.is_alive() && scorer.is_idle());
    }

    #[tokio::test]
    async fn who_waits_when_the_budget_ends_is_told_at_once() {
        let ((begun, first_began), (go, held)) = (channel(), channel::<()>());
        let held = Mutex::new(held);
        let (scorer, counted) = frugal(move |_| {
            begun.send(()).unwrap();
            held.lock().unwrap().recv().unwrap();
            Score::new(7.0, 0.5).ok()
        });
        let mut waiting: Vec<_> = vec![scorer.ask(|| Some("first".into()))];
        first_began.recv().unwrap();
        // While it is scored, there is budget for all that anybody knows.
        waiting.extend((0..3).map(|_| scorer.ask(|| Some("x".into()))));
        assert_eq!(counted(Unscored::Budget), 0);
        go.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut scored = Vec::new();
        for pending in &mut waiting {
            scored.push(pending.by(deadline).await.is_some());
        }
        assert_eq!(scored, [true, false, false, false]);
        assert!(Instant::now() < deadline);
        assert_eq!(counted(Unscored::Budget), 3);
    }

    #[tokio::test]
    async fn why_there_is_no_score_is_counted_once() {
        let ((begun, first_began), (go, held)) = (channel(), channel::<()>());
        let (held, metrics) = (Mutex::new(held), ScorerMetrics::default());
        let predictor = move |_: &str| {
            begun.send(()).unwrap();
            let _ = held.lock().unwrap().recv();
            Score::new(7.0, 0.5).ok()
        };
        let scorer = Scorer::start(Some(Box::new(predictor)), LIMITS, metrics.clone(), nobody()).unwrap();
        scorer.ask_then("first".into(), |_| {});
        first_began.recv().unwrap();
        assert_eq!(scorer.score_by("late".into(), Instant::now() + Duration::from_millis(1)).await, None);
        let _pending: Vec<_> = (0..LIMITS.max_queue).map(|_| scorer.ask(|| Some("x".into()))).collect();
        scorer.pass_over();
        drop(go);
        let counted = [Unscored::Budget, Unscored::QueueFull, Unscored::Deadline, Unscored::Busy];
        // The late one still takes up a place in the queue.
        assert_eq!(counted.map(|why| metrics.unscored(why)), [0, 1, 1, 1]);
    }

    #[tokio::test]
    async fn a_panic_ends_the_thread_and_nobody_waits_for_ever() {
        let scorer = scorer(|_| panic!("broken"));
        let deadline = Instant::now() + Duration::from_secs(5);
        assert_eq!(scorer.ask(|| Some("x".into())).by(deadline).await, None);
        until_dead(&scorer);
        let mut late = scorer.ask(|| Some("x".into()));
        assert_eq!(late.by(deadline).await, None);
        assert!(Instant::now() < deadline);
    }

    #[test]
    fn no_more_wait_than_may_and_a_dropped_scorer_ends_its_thread() {
        let (go, held) = channel::<()>();
        let held = Mutex::new(held);
        let scorer = scorer(move |_| {
            let _ = held.lock().unwrap().recv();
            None
        });
        let queue = Arc::clone(scorer.queue.as_ref().unwrap());
        let (send, told) = channel();
        for nth in 0..20 {
            let send = send.clone();
            scorer.ask_then("x".into(), move |_| send.send(nth).unwrap());
        }
        assert!(queue.lock().jobs.iter().all(|jobs| jobs.len() <= 4));
        drop((go, scorer, send));
        let deadline = Instant::now() + Duration::from_secs(5);
        while !queue.dead.load(Ordering::Acquire) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(told.recv().is_err());
    }
}
