//! From a trace to requests that arrive.

use anyhow::{Result, bail};
use outrank_core::Score;
use outrank_ranker::trace::{Lengths, held_out};
use outrank_ranker::{Ranker, TraceRecord};
use outrank_sim::{Job, Profile};

use crate::arrivals::{Arrival, Arrivals, Window, drawn, standard_normal};
use crate::files::{Place, journal, placed};
use crate::output::{note, plural};
use crate::simulate::args::{ScoreSource, SimulateArgs};

/// Spread of predictions that bring none, as standard deviation of the natural logarithm.
const DEFAULT_SPREAD: f32 = 0.7;

/// What the requests of all runs are drawn from.
pub(crate) struct Workload {
    records: Vec<TraceRecord>,
    requests: Vec<Request>,
    max_tokens: Option<u32>,
    scores: ScoreSource,
    ranker: Option<Ranker>,
}

/// A record of the trace, without its text.
struct Request {
    prompt_tokens: u32,
    /// Lengths of the answer, one a sample.
    output_tokens: Vec<u32>,
    score: Option<Score>,
}

impl Workload {
    /// Reads the traces and scores them.
    pub(crate) fn read(args: &SimulateArgs) -> Result<Self> {
        let mut records = Vec::new();
        let mut add = |place: Place<'_>, record: TraceRecord| {
            if record.prompt_tokens.is_none() {
                bail!("{place}: no prompt_tokens; add them with `outrank trace count`");
            }
            if !args.held_out || held_out(&record) {
                records.push(record);
            }
            Ok(())
        };
        for path in &args.traces {
            if args.from_journal.is_empty() {
                placed(path, Lengths::Required)?.into_iter().try_for_each(|(place, it)| add(place, it))?;
            } else {
                journal(path, &mut add)?;
            }
        }
        if records.is_empty() && !args.from_journal.is_empty() {
            bail!("the journal has no line that can be read");
        }
        if records.is_empty() {
            bail!("none of the trace's prompts is held out; leave --held-out away");
        }
        let ranker = match args.scores {
            ScoreSource::Ranker | ScoreSource::Inverted | ScoreSource::Flipped(..) => args.ranker.load()?,
            _ => None,
        };
        let requests = records
            .iter()
            .map(|record| {
                Ok(Request {
                    prompt_tokens: record.prompt_tokens.unwrap_or(1).max(1),
                    output_tokens: record.output_tokens.iter().map(|&n| n.max(1)).collect(),
                    score: score(record, args.scores, ranker.as_ref())?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { records, requests, max_tokens: args.max_tokens, scores: args.scores, ranker })
    }

    /// The ranker that predicts, if one does.
    pub(crate) fn ranker(&self) -> Option<&Ranker> {
        self.ranker.as_ref()
    }

    /// What a ranker reads of a record.
    pub(crate) fn text(&self, record: usize) -> String {
        self.records[record].request_text()
    }

    /// When which records arrive; `capacity_per_s` is that of the profile.
    pub(crate) fn schedule(
        &self,
        arrivals: &Arrivals,
        window: &Window,
        capacity_per_s: f64,
    ) -> Result<Vec<Arrival>> {
        arrivals.schedule(&self.records, window, Some(capacity_per_s))
    }

    /// So many requests at once, to measure capacity with.
    pub(crate) fn burst(&self, requests: usize) -> Vec<Arrival> {
        drawn(&vec![0.0; requests], self.records.len(), 0)
    }

    /// The request of each arrival. What exceeds the context of the profile is cut.
    pub(crate) fn jobs(&self, profile: &Profile, arrivals: &[Arrival], seed: u64) -> Vec<Job> {
        let mut random = fastrand::Rng::with_seed(seed);
        let context = profile.capacity.context_tokens;
        let mut cut = 0;
        let mut jobs: Vec<Job> = arrivals
            .iter()
            .map(|arrival| {
                let request = &self.requests[arrival.record];
                let sample = request.output_tokens[random.usize(..request.output_tokens.len())];
                let limited = sample.min(self.max_tokens.unwrap_or(u32::MAX));
                let (prompt_tokens, output_tokens) = within(context, request.prompt_tokens, limited);
                cut += usize::from(sample > context / 2 || prompt_tokens < request.prompt_tokens);
                let max_tokens = self.max_tokens.map(|limit| limit.min(context - prompt_tokens));
                Job {
                    arrival_s: arrival.at_s,
                    prompt_tokens,
                    output_tokens,
                    max_tokens,
                    score: request.score,
                }
            })
            .collect();
        if cut > 0 && seed == 1 {
            note(&format!(
                "{} of {} cut to half of the context of {context} tokens of {}",
                cut,
                plural(jobs.len(), "request"),
                profile.name
            ));
        }
        self.disturb(&mut jobs, &mut random);
        jobs
    }

    /// Predictions that depend on the run's seed.
    fn disturb(&self, jobs: &mut [Job], random: &mut fastrand::Rng) {
        match self.scores {
            ScoreSource::Noisy(sigma) => {
                for job in jobs {
                    let normal = standard_normal(random);
                    let median = f64::from(job.output_tokens) * (sigma * normal).exp();
                    job.score = Score::new(median.clamp(0.1, 1e7) as f32, (sigma as f32).max(0.05)).ok();
                }
            }
            ScoreSource::Random => {
                let mut lengths: Vec<u32> = jobs.iter().map(|job| job.output_tokens).collect();
                random.shuffle(&mut lengths);
                for (job, tokens) in jobs.iter_mut().zip(lengths) {
                    job.score = Score::new(tokens as f32, DEFAULT_SPREAD).ok();
                }
            }
            ScoreSource::Flipped(from_s, to_s) => {
                for job in jobs.iter_mut().filter(|job| (from_s..to_s).contains(&job.arrival_s)) {
                    job.score = job.score.and_then(mirrored);
                }
            }
            _ => {}
        }
    }
}

/// Tokens of prompt and answer, cut to half of the context each where they exceed it.
pub(crate) fn within(context: u32, prompt_tokens: u32, output_tokens: u32) -> (u32, u32) {
    let output_tokens = output_tokens.min(context / 2);
    (prompt_tokens.min(context - output_tokens.max(context / 2)), output_tokens)
}

/// A score of the opposite order: mirrored at 200 tokens, within what a score may be.
fn mirrored(score: Score) -> Option<Score> {
    Score::new((40_000.0 / score.median_tokens()).max(0.1), score.spread()).ok()
}

/// Tau-b between predictions and lengths, where there are predictions.
pub(crate) fn tau_b(jobs: &[Job]) -> Option<f64> {
    let scored = jobs.iter().filter_map(|job| Some((job.score?, job.output_tokens)));
    let (predicted, truth): (Vec<f64>, Vec<f64>) = scored
        .map(|(score, output_tokens)| (f64::from(score.median_tokens()), f64::from(output_tokens)))
        .unzip();
    outrank_ranker::kendall_tau_b(&predicted, &truth)
}

fn score(record: &TraceRecord, source: ScoreSource, ranker: Option<&Ranker>) -> Result<Option<Score>> {
    let ranked = || ranker.map(|ranker| ranker.score(&record.request_text()));
    Ok(match source {
        ScoreSource::Ranker | ScoreSource::Flipped(..) => ranked(),
        ScoreSource::Inverted => ranked().and_then(mirrored),
        ScoreSource::Trace => {
            let Some(value) = record.score else {
                bail!("--scores trace: a request of the trace has no score")
            };
            let score = Score::new(value as f32, DEFAULT_SPREAD);
            Some(score.map_err(|error| anyhow::anyhow!("--scores trace: {error} (scores are in tokens)"))?)
        }
        ScoreSource::Journal => {
            let spread = record.extra.get("spread").and_then(serde_json::Value::as_f64);
            let spread = spread.map_or(DEFAULT_SPREAD, |spread| spread as f32);
            record.score.map(|median| Score::new(median as f32, spread)).transpose()?
        }
        ScoreSource::Noisy(_) | ScoreSource::Random | ScoreSource::None => None,
    })
}
