//! `outrank serve`.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::gateway;
use crate::host::{Host, HostConfig, ModelFile};
use crate::output::{Output, note};
use crate::settings::{
    EngineSettings, FileSettings, GatewaySettings, PolicyFlags, RankerSettings, ServeSettings,
};

pub(crate) const DEFAULT_PORT: u16 = 8000;
/// What a shell reports for a program that Ctrl-C ended.
pub(crate) const INTERRUPTED: i32 = 130;

/// Serve a model over the OpenAI API, in learned-rank order, or put that order in front of other servers
///
/// With --upstream it is a gateway: no model is run, and requests to the upstreams are ordered, spread and watched over.
///
/// Answers /v1/chat/completions, /v1/completions and /v1/models, streaming or whole. Every request is scored by the ranker
/// and gets a virtual deadline, its arrival plus a head start for shorter ones, bounded by --patience-s; the earliest goes first.
/// /v1/outrank/requests/ID tells where a request stands and why; /metrics, /health/live and /health/ready are for machines.
///
/// On SIGTERM or Ctrl-C it accepts no more, finishes what runs within --drain-s, and exits; a second one ends it at once.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    outrank serve\n  \
    outrank serve --model llama.gguf --seats 16 --context 4096 --ranker my.outrank\n  \
    outrank serve --host 0.0.0.0 --port 80 --api-key secret\n  \
    outrank serve --upstream http://gpu1:8000 --upstream 'http://gpu2:8000 weight=2'\n  \
    OUTRANK_POLICY=fcfs outrank serve\n\n\
    outrank.toml:\n  \
    [serve]\n  port = 8080\n  [engine]\n  seats = 16\n  [policy]\n  patience_s = 60.0\n\n\
    OUTRANK_LOG sets what is logged to stderr: error, warn (default), info, debug.")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) serve: ServeSettings,
    #[command(flatten)]
    pub(crate) gateway: GatewaySettings,
    #[command(flatten)]
    pub(crate) engine: EngineSettings,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    #[command(flatten)]
    pub(crate) ranker: RankerSettings,
}

/// What `--json` prints when the server is ready.
#[derive(Serialize)]
struct Ready<'a> {
    url: &'a str,
    model: &'a str,
    policy: &'a str,
    seats: u32,
    context_tokens: u32,
}

/// Runs the command: the gateway, if there are upstreams, or else the embedded engine.
pub(crate) fn run(args: ServeArgs, file: FileSettings, path: Option<&Path>, output: &Output) -> Result<()> {
    start_log();
    if gateway::is_wanted(&args, &file) {
        return gateway::run(args, file, path.map(Path::to_owned), output);
    }
    embedded(args, file, output)
}

fn embedded(args: ServeArgs, file: FileSettings, output: &Output) -> Result<()> {
    gateway::refuse_settings(&args, &file)?;
    let serve = args.serve.or(file.serve);
    let engine = args.engine.or(file.engine);
    let ranker = args.ranker.or(file.ranker);
    let (ranker, learning) = (ranker.load()?, ranker.learning()?);
    let policy = serve.policy().to_owned();
    let order = order(&policy, serve.shadow.unwrap_or(false), ranker.is_some());
    let mut config = HostConfig::to_serve(&serve, &engine, &args.policy.or(file.policy), ranker)?;
    config.learning = learning;
    let model = ModelFile::open(&engine)?;
    let name = serve.model_name.unwrap_or_else(|| model.name());
    config.server.model_name.clone_from(&name);
    let (seats, context_tokens) = (config.engine.seats, config.engine.context_tokens);
    note(&format!(
        "serving {name} ({}), {order}: {seats} seats of {context_tokens} tokens, {} threads",
        model.path().display(),
        config.engine.threads()
    ));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("async runtime")?;
    runtime.block_on(async {
        outlive_file_limits()?;
        let mut host = Host::start(&model, config).await?;
        let url = host.url().to_owned();
        let ready = Ready { url: &url, model: &name, policy: &policy, seats, context_tokens };
        output.result(&ready, &ready_text(&url, &name, serve.api_key.is_some()))?;
        tokio::select! {
            error = host.broken() => return Err(error),
            asked = shutdown() => asked?,
        }
        note("stopping: no new requests; those that run may finish (again to stop at once)");
        let engine = host.engine();
        tokio::spawn(async move {
            if shutdown().await.is_ok() {
                // llama.cpp must not compute while the process exits.
                tokio::task::block_in_place(|| engine.shutdown());
                std::process::exit(INTERRUPTED);
            }
        });
        host.stop().await
    })
}

/// The order of requests, in words.
pub(crate) fn order(policy: &str, shadow: bool, has_ranker: bool) -> String {
    match (shadow, has_ranker) {
        (true, _) => format!("ordered by arrival; {policy} in the shadow"),
        (false, true) => format!("ordered by {policy}"),
        (false, false) => format!("ordered by {policy} without a ranker"),
    }
}

fn ready_text(url: &str, model: &str, key: bool) -> String {
    let key = if key { " -H 'Authorization: Bearer KEY'" } else { "" };
    format!(
        "ready on {url}, try:\n  \
         curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n    \
         -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is the capital of France?\"}}]}}'"
    )
}

/// Has a file that may grow no further (`ulimit -f`) be an error of whoever writes it, as a full disk is; unless somebody listens for
/// its signal, that ends the process.
pub(crate) fn outlive_file_limits() -> Result<()> {
    /// SIGXFSZ, of Linux on all but MIPS.
    const FILE_LIMIT: i32 = 25;
    // Once listened for, a signal stays without its default action; nobody needs to hear it.
    signal(SignalKind::from_raw(FILE_LIMIT)).context("SIGXFSZ").map(drop)
}

pub(crate) async fn shutdown() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("Ctrl-C"),
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_env("OUTRANK_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
