//! `outrank trace collect`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use outrank_ranker::TraceRecord;
use outrank_ranker::trace::{Lengths, write_trace};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::error::usage;
use crate::files::{self, Place};
use crate::host::{Host, HostConfig, ModelFile};
use crate::http::{Api, Endpoint};
use crate::output::{Output, note, plural};
use crate::progress::Progress;
use crate::settings::{EngineSettings, FileSettings, PolicyFlags};
use crate::trace::journal::{Answer, Answers, Header, Journal};
use crate::trace::sampler::{Failure, Sampler};

/// Requests in flight where nothing is said and the size of the server is not known.
const URL_CONCURRENCY: u32 = 8;
/// Failures quoted, at most.
const MAX_QUOTED: usize = 10;

/// Sample answer lengths for prompts, from any OpenAI server or the embedded engine; resumable
///
/// Each prompt is answered --samples times to the model's own end of text; the trace records the tokens of each answer,
/// whether it hit the limit, and the tokens of the prompt as the server counts them. Partial results are kept in
/// OUT.journal: run the same command again to go on where it stopped. The trace is written at the end, in one piece, in
/// the order of the input. Records that have lengths already keep them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    outrank trace collect prompts.jsonl --out trace.jsonl.gz --samples 1 --temperature 0\n  \
    outrank trace collect prompts.jsonl --out trace.jsonl.gz --url http://gpu:8000 --samples 3")]
pub(crate) struct CollectArgs {
    /// Prompts: JSON lines with `prompt` or `messages`; several files are joined
    #[arg(required = true, value_name = "FILE")]
    prompts: Vec<PathBuf>,
    /// Trace to write; a name in .gz is compressed
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Server to ask, any that speaks the OpenAI API [default: the embedded engine]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Model name to ask a --url for [default: the first that it lists]
    #[arg(long, value_name = "NAME", requires = "url")]
    url_model: Option<String>,
    /// Key for a --url, sent as `Authorization: Bearer KEY`
    #[arg(long, env = "OPENAI_API_KEY", value_name = "KEY", hide_env_values = true)]
    url_key: Option<String>,
    /// Use /v1/completions instead of /v1/chat/completions
    #[arg(long)]
    completions: bool,
    /// Answers to each prompt
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    samples: u32,
    /// Sampling temperature
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,
    /// Seed of sampling
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Output limit in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Requests in flight [default: seats of the embedded engine, 8 for a --url]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Sample again where the input has lengths already
    #[arg(long)]
    replace: bool,
    /// Leave prompts that the server refuses (too long, for one) out of the trace instead of failing
    #[arg(long)]
    skip_failed: bool,
    /// Overwrite an existing trace
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    engine: EngineSettings,
}

#[derive(Serialize)]
struct Report {
    out: String,
    requests: usize,
    /// Answers sampled by this run.
    sampled: usize,
    /// Answers that an earlier run had left in the journal.
    resumed: usize,
    truncated: usize,
    /// Prompts that were refused, and left out.
    skipped: usize,
}

/// The prompts of all files in a row, each with its place.
#[derive(Default)]
struct Input<'a> {
    records: Vec<TraceRecord>,
    places: Vec<Place<'a>>,
}

/// Runs the command.
pub(crate) fn run(mut args: CollectArgs, file: FileSettings, output: &Output) -> Result<()> {
    args.engine = std::mem::take(&mut args.engine).or(file.engine);
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(usage(format!("--temperature {}: must be a number of at least 0", args.temperature)));
    }
    if args.prompts.contains(&args.out) {
        return Err(usage("--out names the input; write to another file"));
    }
    if args.out.exists() && !args.force {
        bail!("{} is there already; --force samples everything again and replaces it", args.out.display());
    }
    files::check_out(&args.out)?;
    let mut input = Input::default();
    for path in &args.prompts {
        for (place, record) in files::placed(path, Lengths::Optional)? {
            input.places.push(place);
            input.records.push(record);
        }
    }
    let kept = input.records.iter().filter(|record| !record.output_tokens.is_empty()).count();
    if kept > 0 && !args.replace {
        note(&format!(
            "{} lengths already and keep them (--replace samples them again)",
            plural(kept, "record has")
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let report = runtime.context("async runtime")?.block_on(collect(&args, input))?;
    let text = format!(
        "{}: {}; {} sampled, {} from the journal, {} at the limit, {} left out",
        report.out,
        plural(report.requests, "request"),
        plural(report.sampled, "answer"),
        report.resumed,
        report.truncated,
        plural(report.skipped, "refused prompt"),
    );
    output.result(&report, &text)
}

async fn collect(args: &CollectArgs, input: Input<'_>) -> Result<Report> {
    let (host, sampler, concurrency) = match &args.url {
        Some(url) => {
            let api = Api::new(url, args.url_key.clone())?;
            let model = match &args.url_model {
                Some(model) => model.clone(),
                None => api.first_model().await?,
            };
            (None, args.sampler(api, model), args.concurrency.unwrap_or(URL_CONCURRENCY))
        }
        None => {
            let concurrency = args.concurrency.unwrap_or_else(|| crate::host::seats(&args.engine));
            let mut config = HostConfig::new("fcfs", &args.engine, &PolicyFlags::default(), None)?;
            let model = ModelFile::open(&args.engine)?;
            config.queue_at_least(concurrency as usize + 1);
            let host = Host::start(&model, config).await?;
            let api = Api::new(host.url(), None)?;
            (Some(host), args.sampler(api, model.name()), concurrency)
        }
    };
    let result = sample_all(args, input, &Arc::new(sampler), concurrency as usize).await;
    if let Some(host) = host {
        host.stop().await?;
    }
    result
}

async fn sample_all(
    args: &CollectArgs,
    Input { records, places }: Input<'_>,
    sampler: &Arc<Sampler>,
    concurrency: usize,
) -> Result<Report> {
    let journal_path = Journal::path_for(&args.out);
    let (mut journal, mut answers) = Journal::open(&journal_path, &args.header(&records, &sampler.model))?;
    let resumed = answers.len();
    let wanted = |record: &TraceRecord| args.replace || record.output_tokens.is_empty();
    let records = Arc::new(records);
    let mut left = (0..records.len())
        .filter(|&request| wanted(&records[request]))
        .flat_map(|request| (0..args.samples).map(move |sample| (request, sample)))
        .filter(|key| !answers.contains_key(key))
        .collect::<Vec<_>>()
        .into_iter();
    let progress = Progress::new("collect", left.len() + resumed);
    progress.set(resumed, left.len() + resumed);
    let mut running = JoinSet::new();
    let mut refused: Vec<(usize, String)> = Vec::new();
    loop {
        for (request, sample) in left.by_ref().take(concurrency - running.len()) {
            let (sampler, records) = (Arc::clone(sampler), Arc::clone(&records));
            running.spawn(async move { (request, sampler.sample(request, &records[request], sample).await) });
        }
        let Some(done) = running.join_next().await else { break };
        match done? {
            (_, Ok(answer)) => {
                journal.append(&answer)?;
                answers.insert((answer.request, answer.sample), answer);
            }
            (request, Err(Failure::Refused(why))) => refused.push((request, why)),
            (_, Err(Failure::Unavailable(why))) => {
                let have = answers.len();
                bail!(
                    "the server is not available: {why}; {have} answers are kept, run the same command to go on"
                );
            }
        }
        progress.step();
    }
    drop(progress);
    let skipped = args.refusals(&refused, &places)?;
    let trace = finished(args, &records, &answers, &sampler.model, &skipped);
    write_trace(&args.out, &trace)?;
    journal.remove()?;
    Ok(Report {
        out: args.out.display().to_string(),
        requests: trace.len(),
        sampled: answers.len() - resumed,
        resumed,
        truncated: answers.values().filter(|answer| answer.truncated).count(),
        skipped: skipped.len(),
    })
}

/// The records with their samples, in the order of the input.
fn finished(
    args: &CollectArgs,
    records: &[TraceRecord],
    answers: &Answers,
    model: &str,
    skipped: &[usize],
) -> Vec<TraceRecord> {
    let finish = |(request, record): (usize, &TraceRecord)| {
        let samples: Vec<&Answer> =
            (0..args.samples).filter_map(|sample| answers.get(&(request, sample))).collect();
        let mut record = record.clone();
        if let Some(first) = samples.first() {
            record.prompt_tokens = Some(first.prompt_tokens);
            record.output_tokens = samples.iter().map(|answer| answer.output_tokens).collect();
            record.truncated = samples.iter().map(|answer| answer.truncated).collect();
            record.model = Some(model.to_owned());
        }
        record
    };
    records.iter().enumerate().filter(|(request, _)| !skipped.contains(request)).map(finish).collect()
}

impl CollectArgs {
    fn sampler(&self, api: Api, model: String) -> Sampler {
        let endpoint = if self.completions { Endpoint::Completions } else { Endpoint::Chat };
        let (temperature, seed, max_tokens) = (self.temperature, self.seed, self.max_tokens);
        Sampler { api, endpoint, model, temperature, seed, max_tokens }
    }

    fn header(&self, records: &[TraceRecord], model: &str) -> Header {
        let mut hash = Sha256::new();
        for record in records {
            let text = record.text();
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        let endpoint = if self.completions { Endpoint::Completions } else { Endpoint::Chat };
        Header {
            prompts_sha256: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            model: model.to_owned(),
            origin: match &self.url {
                // The same server may come back on another port.
                Some(_) => "a server".into(),
                None => format!("{:?}, system prompt {:?}", self.engine.model, self.engine.system_prompt),
            },
            endpoint: endpoint.path().to_owned(),
            samples: self.samples,
            temperature: self.temperature,
            seed: self.seed,
            max_tokens: self.max_tokens,
        }
    }

    /// The requests to leave out, or an error if there are any and that was not asked for.
    fn refusals(&self, refused: &[(usize, String)], places: &[Place<'_>]) -> Result<Vec<usize>> {
        if refused.is_empty() {
            return Ok(Vec::new());
        }
        let quoted =
            refused.iter().take(MAX_QUOTED).map(|(request, why)| format!("\n  {}: {why}", places[*request]));
        let text = format!("{} refused:{}", plural(refused.len(), "answer"), quoted.collect::<String>());
        if !self.skip_failed {
            bail!(
                "{text}\nthe rest is kept; correct these prompts, or run again with --skip-failed to leave them out"
            );
        }
        note(&text);
        let mut requests: Vec<usize> = refused.iter().map(|(request, _)| *request).collect();
        requests.sort_unstable();
        requests.dedup();
        Ok(requests)
    }
}
