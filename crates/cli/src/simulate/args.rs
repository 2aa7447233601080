//! The flags of `outrank simulate`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::{Args, ValueEnum};
use outrank_sim::Slo;

use crate::args::{not_negative, positive};
use crate::arrivals::Arrivals;
use crate::error::usage;
use crate::settings::RankerSettings;
use crate::simulate::spec::PolicySpec;

/// Find out what each policy would give, on any traffic and engine, without running one
///
/// The production scheduler runs under a virtual clock; only the engine's steps are simulated, by costs fitted from
/// measured steps (a profile). Every policy gets the same requests at the same times. A trace gives prompts, lengths and,
/// if it carries them, scores; predictions come from the ranker unless --scores says otherwise.
///
/// A policy may carry settings: `outrank:steepness=3:patience_s=60`. Latencies are in seconds, as in `outrank bench`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrank simulate --trace t.jsonl.gz --held-out --arrivals burst:2000 --policies fcfs,ltr,outrank,oracle-sjf \\\n    \
    --profile h200-llama3-8b --seeds 5\n  \
    Load by load, with Poisson arrivals for 90 s:\n    \
    outrank simulate --trace t.jsonl.gz --arrivals load:0.5 --arrivals load:0.95 --arrivals load:1.5 \\\n      \
    --duration-s 90 --policies fcfs,outrank --profile a100-40g-llama3-8b --json > r.json\n  \
    Production's rhythm at 1.2 of capacity:\n    \
    outrank simulate --trace t.jsonl.gz --arrivals csv:azure2023_code.csv.gz --load 1.2 --policies fcfs,outrank \\\n      \
    --report azure.html")]
pub(crate) struct SimulateArgs {
    /// Trace whose requests arrive; repeatable
    #[arg(long = "trace", value_name = "FILE", required_unless_present = "from_journal")]
    pub(crate) traces: Vec<PathBuf>,
    /// Replay the journal of a gateway: its requests when they arrived, with the predictions that were made then; several,
    /// for the files before it (FILE.1 and so on)
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["traces", "held_out", "arrivals", "scores"])]
    pub(crate) from_journal: Vec<PathBuf>,
    /// Take only held-out prompts, those that `train` without --all did not learn from
    #[arg(long)]
    pub(crate) held_out: bool,
    /// burst:N, poisson:RATE (per second), gamma:RATE:CV, load:X (Poisson at X of capacity), csv:FILE, trace (its own times); repeatable
    #[arg(long, value_name = "PATTERN", required_unless_present = "from_journal")]
    pub(crate) arrivals: Vec<Arrivals>,
    /// Scale csv: and trace arrivals to these fractions of capacity, comma-separated [default: as recorded]
    #[arg(long, value_name = "X", value_delimiter = ',', value_parser = positive)]
    pub(crate) load: Vec<f64>,
    /// Policies, comma-separated, each with its settings if wanted; ratios are to the first
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    pub(crate) policies: Vec<PolicySpec>,
    /// Engine: cpu-smollm2, h200-llama3-8b, a100-40g-llama3-8b, or a TOML file; repeatable
    #[arg(long = "profile", value_name = "NAME", default_value = "h200-llama3-8b")]
    pub(crate) profiles: Vec<String>,
    /// Sequences in the batch at once [default: the profile's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seats: Option<u32>,
    /// Runs of each combination, with seeds 1 to N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) seeds: u64,
    /// Seconds in which requests arrive; then all are waited for [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub(crate) duration_s: Option<f64>,
    /// Requests to send, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) requests: Option<u32>,
    /// Output limit in tokens that clients set; also cuts the lengths of the trace
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// Where predictions come from: ranker, trace (its own), noisy:SIGMA, random, inverted, flipped:FROM:TO (inverted between
    /// these seconds), none
    #[arg(long, value_name = "SOURCE", default_value = "ranker")]
    pub(crate) scores: ScoreSource,
    /// Learn during each run, as hosts do while they serve: `ended`, from the answers that have ended, as serve and gateway do, or
    /// `running`, from those who run too, as the plug-in for vLLM does
    #[arg(long, value_name = "FROM")]
    pub(crate) learn: Option<Learn>,
    /// Seconds that scoring one request takes, beside the engine unless --blocking-scores
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = not_negative)]
    pub(crate) score_s: f64,
    /// The engine waits for scores, as in the paper's code
    #[arg(long)]
    pub(crate) blocking_scores: bool,
    /// Follow the ranker whatever it does: switches the monitor off
    #[arg(long)]
    pub(crate) no_monitor: bool,
    /// Objectives for goodput, in seconds, such as ttft:2,tpot:0.1,e2e:30
    #[arg(long, value_name = "LIST")]
    pub(crate) slo: Option<Slo>,
    /// Report the seconds until so many requests are answered (data generation)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) first: Option<u32>,
    /// Report how many requests are answered in so many seconds (data generation)
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub(crate) within_s: Option<f64>,
    /// Runs at once [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// Write the runs as CSV, a line each
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    /// Write a self-contained HTML page: the tables; latency against load; distributions of E2E, s/token and TTFT; E2E by length; queues over time
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Write every answer as a JSON line: run, request, arrival, tokens, TTFT, E2E
    #[arg(long, value_name = "FILE")]
    pub(crate) answers: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ranker: RankerSettings,
}

/// Where predictions come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ScoreSource {
    /// The ranker.
    Ranker,
    /// The trace's own `score`, in tokens.
    Trace,
    /// What a gateway predicted, where it did.
    Journal,
    /// The true lengths, each multiplied by exp(noise · a standard normal).
    Noisy(f64),
    /// Lengths of other requests, at random.
    Random,
    /// The ranker's, upside down: what it takes for long it calls short.
    Inverted,
    /// The ranker's, upside down for requests that arrive in this span of seconds: a drift that comes and goes.
    Flipped(f64, f64),
    /// None.
    None,
}

/// What is learned from during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Learn {
    /// Answers that have ended.
    Ended,
    /// Those who run too.
    Running,
}

const SOURCES: &str = "expected ranker, trace, noisy:SIGMA, random, inverted, flipped:FROM:TO or none";

impl FromStr for ScoreSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None => match <NamedSource as ValueEnum>::from_str(text, false) {
                Ok(NamedSource::Ranker) => Ok(Self::Ranker),
                Ok(NamedSource::Trace) => Ok(Self::Trace),
                Ok(NamedSource::Random) => Ok(Self::Random),
                Ok(NamedSource::Inverted) => Ok(Self::Inverted),
                Ok(NamedSource::None) => Ok(Self::None),
                Err(_) => Err(SOURCES.into()),
            },
            Some(("noisy", sigma)) => match sigma.parse::<f64>() {
                Ok(sigma) if sigma.is_finite() && sigma >= 0.0 => Ok(Self::Noisy(sigma)),
                _ => Err(format!("noisy: expected a number of at least 0, found {sigma:?}")),
            },
            Some(("flipped", span)) => {
                let ends = span.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                match ends {
                    Some((from_s, to_s)) if 0.0 <= from_s && from_s < to_s => Ok(Self::Flipped(from_s, to_s)),
                    _ => Err(format!("flipped: expected FROM:TO in seconds, FROM below TO, found {span:?}")),
                }
            }
            Some(_) => Err(SOURCES.into()),
        }
    }
}

impl fmt::Display for ScoreSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ranker => f.write_str("ranker"),
            Self::Trace => f.write_str("trace"),
            Self::Journal => f.write_str("as predicted in production"),
            Self::Noisy(sigma) => write!(f, "noisy:{sigma}"),
            Self::Random => f.write_str("random"),
            Self::Inverted => f.write_str("inverted"),
            Self::Flipped(from_s, to_s) => write!(f, "flipped:{from_s}:{to_s}"),
            Self::None => f.write_str("none"),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NamedSource {
    Ranker,
    Trace,
    Random,
    Inverted,
    None,
}

impl SimulateArgs {
    /// Makes of `--from-journal` what it stands for.
    pub(crate) fn take_journal(&mut self) {
        /// Longer than any journal.
        const FOR_EVER_S: f64 = 1e12;
        if self.from_journal.is_empty() {
            return;
        }
        self.traces.clone_from(&self.from_journal);
        self.arrivals = vec![Arrivals::Trace];
        self.scores = ScoreSource::Journal;
        self.duration_s.get_or_insert(FOR_EVER_S);
    }

    /// Refuses combinations that would be ignored.
    pub(crate) fn check(&self) -> Result<()> {
        for arrivals in &self.arrivals {
            if matches!(arrivals, Arrivals::Serial(_)) {
                return Err(usage("serial: is for `outrank bench`; use poisson: with a low rate here"));
            }
        }
        if !self.load.is_empty()
            && !self.arrivals.iter().any(|it| matches!(it, Arrivals::Csv(_) | Arrivals::Trace))
        {
            return Err(usage(
                "--load scales csv: and trace arrivals, and there are none; write load:X instead",
            ));
        }
        if self.learn.is_some() && self.scores != ScoreSource::Ranker {
            return Err(usage("--learn teaches the ranker, and --scores takes predictions from elsewhere"));
        }
        if self.duration_s.is_some() && self.arrivals.iter().all(|it| matches!(it, Arrivals::Burst(_))) {
            return Err(usage("--duration-s means nothing for bursts: they end when all are answered"));
        }
        Ok(())
    }
}
