//! The flags of `outrank bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use outrank_sim::Slo;

use crate::args::{not_negative, positive};
use crate::arrivals::Arrivals;
use crate::error::usage;
use crate::settings::{EngineSettings, PolicyFlags, RankerSettings, policy_name};

/// Load a server, or compare policies on the embedded engine
///
/// Sends the requests of a trace at the given arrivals, whether or not earlier ones are answered (open loop), and
/// measures each from its client's side. With --policies, the embedded engine serves them under one policy after the
/// other: same requests, same arrivals, a warm engine each time.
///
/// s/token is the end-to-end latency divided by the tokens of the answer; TTFT the time to the first token; TPOT the time
/// per further token; ITL the gaps between tokens; max wait the larger of TTFT and the longest gap. All in seconds. Time
/// counts from when a request should have been sent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    Compare policies on 100 requests at once, to the model's own end of text:\n    \
    outrank bench --policies fcfs,ltr,outrank,oracle-sjf --trace t.jsonl.gz --held-out \\\n      \
    --arrivals burst:100 --lengths free\n  \
    Any OpenAI server at 4 requests a second for a minute, with the recorded lengths:\n    \
    outrank bench --url http://127.0.0.1:8000 --trace t.jsonl --arrivals poisson:4 --json > r.json\n  \
    Production's rhythm at 2 requests a second:\n    \
    outrank bench --policies fcfs,outrank --trace t.jsonl --arrivals csv:azure2023_conv.csv.gz \\\n      \
    --rate 2\n  \
    The first ten minutes of a log as they were:\n    \
    outrank bench --policies fcfs,outrank --trace log.jsonl.gz --arrivals trace --duration-s 600\n  \
    Latency at no load, 30 requests alternating between the policies:\n    \
    outrank bench --policies fcfs,outrank --trace t.jsonl --arrivals serial:30")]
pub(crate) struct BenchArgs {
    /// Server to load, any that speaks the OpenAI API
    #[arg(long, value_name = "URL", conflicts_with = "policies", required_unless_present = "policies")]
    pub(crate) url: Option<String>,
    /// Policies to compare on the embedded engine, comma-separated; ratios are to the first
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = policy_name)]
    pub(crate) policies: Vec<String>,
    /// Trace whose prompts are sent; repeatable
    #[arg(long = "trace", value_name = "FILE", required = true)]
    pub(crate) traces: Vec<PathBuf>,
    /// Send only held-out prompts, those that `train` without --all did not learn from
    #[arg(long)]
    pub(crate) held_out: bool,
    /// burst:N, poisson:RATE (per second), load:X (of measured capacity), csv:FILE, trace (each request at its own
    /// arrival_s), or serial:N (one at a time)
    #[arg(long, value_name = "PATTERN")]
    pub(crate) arrivals: Arrivals,
    /// Mean rate to scale csv: and trace arrivals to, in requests a second [default: as recorded]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    pub(crate) rate: Option<f64>,
    /// Requests to send, at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) requests: Option<u32>,
    /// Seconds in which requests arrive; then all are waited for [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub(crate) duration_s: Option<f64>,
    /// Seed of arrivals, of the choice of requests and of sampling; trace arrivals choose nothing
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Runs of each policy, interleaved; each uses the next seed, of sampling too
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeats: u32,
    /// Whether answers have the recorded lengths, or end where the model ends them
    #[arg(long, value_enum, default_value_t = LengthMode::Recorded)]
    pub(crate) lengths: LengthMode,
    /// Output limit in tokens; also caps recorded lengths [default: none, or the server's]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// Sampling temperature
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = not_negative)]
    pub(crate) temperature: f64,
    /// Use /v1/chat/completions (the default)
    #[arg(long, conflicts_with = "completions")]
    pub(crate) chat: bool,
    /// Use /v1/completions
    #[arg(long)]
    pub(crate) completions: bool,
    /// Tell a --url, which must be an outrank server, the true lengths: its oracle policies need them
    #[arg(long, requires = "url")]
    pub(crate) outrank_hints: bool,
    /// Objectives for goodput, in seconds, such as ttft:2,tpot:0.1,e2e:30
    #[arg(long, value_name = "LIST")]
    pub(crate) slo: Option<Slo>,
    /// Requests before each timed run that warm the engine up; their latencies are dropped [default: seats, or 4]
    #[arg(long, value_name = "N")]
    pub(crate) warm_up: Option<u32>,
    /// Seconds after which an unanswered request counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 1800.0, value_parser = positive)]
    pub(crate) timeout_s: f64,
    /// Model name to ask a --url for [default: the first that it lists]
    #[arg(long, value_name = "NAME", requires = "url")]
    pub(crate) url_model: Option<String>,
    /// Key for a --url, sent as `Authorization: Bearer KEY`
    #[arg(long, env = "OPENAI_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub(crate) url_key: Option<String>,
    /// Write the JSON result to this file as well
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) engine: EngineSettings,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    #[command(flatten)]
    pub(crate) ranker: RankerSettings,
}

/// How long answers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LengthMode {
    /// As long as the trace says (ignore_eos and max_tokens)
    Recorded,
    /// Until the model ends them
    Free,
}

impl BenchArgs {
    /// Refuses combinations that would be ignored.
    pub(crate) fn check(&self) -> Result<()> {
        self.arrivals.check(self.rate, self.duration_s)?;
        if self.url.is_some() && matches!(self.arrivals, Arrivals::Load(_)) {
            return Err(usage(
                "load: needs --policies, on whose engine capacity is measured; use poisson:RATE with --url",
            ));
        }
        if let Some(name) =
            self.policies.iter().enumerate().find_map(|(i, p)| self.policies[..i].contains(p).then_some(p))
        {
            return Err(usage(format!("--policies names {name} twice; use --repeats for several runs")));
        }
        Ok(())
    }
}
