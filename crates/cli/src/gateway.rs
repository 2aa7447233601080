//! `outrank serve --upstream`: the gateway, and `outrank check`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use outrank_gateway::{
    Affinity, Gateway, GatewayConfig, GatewayError, Handle, JournalConfig, TenantConfig, TlsConfig,
    UpstreamConfig,
};
use outrank_http::{AdaptiveRanker, Predictor, ranker_scores};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::usage;
use crate::host::HostConfig;
use crate::output::{Output, note};
use crate::serve::{DEFAULT_PORT, INTERRUPTED, ServeArgs, order, outlive_file_limits, shutdown};
use crate::settings::{EngineSettings, FileSettings, GatewaySettings, Learning, RankerSettings, set};

/// Journal size and number of files, unless said otherwise.
const DEFAULT_JOURNAL_MIB: u64 = 64;
const DEFAULT_JOURNAL_FILES: u32 = 4;

/// What `--json` prints when the gateway is ready.
#[derive(Serialize)]
struct Ready<'a> {
    url: &'a str,
    policy: &'a str,
    upstreams: Vec<String>,
}

/// What `check --json` prints.
#[derive(Serialize)]
struct Checked {
    kind: &'static str,
    upstreams: Vec<outrank_gateway::Reached>,
}

/// Whether the settings ask for a gateway.
pub(crate) fn is_wanted(args: &ServeArgs, file: &FileSettings) -> bool {
    let names = |settings: &GatewaySettings| settings.upstream.is_some() || settings.upstreams_file.is_some();
    names(&args.gateway) || names(&file.gateway)
}

/// Refuses settings of the gateway where there is none.
pub(crate) fn refuse_settings(args: &ServeArgs, file: &FileSettings) -> Result<()> {
    if is_unset(&args.gateway) && is_unset(&file.gateway) && file.tenants.is_empty() {
        return Ok(());
    }
    Err(usage(
        "settings of the gateway mean nothing without --upstream or --upstreams-file: add one, or remove them",
    ))
}

fn is_unset(settings: &GatewaySettings) -> bool {
    format!("{settings:?}") == format!("{:?}", GatewaySettings::default())
}

/// Runs the gateway until it is told to stop.
pub(crate) fn run(args: ServeArgs, file: FileSettings, path: Option<PathBuf>, output: &Output) -> Result<()> {
    crate::http::allow_many_sockets();
    let (config, ranker) = settings(args.clone(), file)?;
    let predictor = predictor(&ranker)?;
    let order = order(&config.policy, config.shadow, predictor.is_some());
    let upstreams: Vec<String> = config.upstreams.iter().map(|upstream| upstream.url.clone()).collect();
    let (policy, tls, wants_key) = (config.policy.clone(), config.tls.is_some(), !config.tenants.is_empty());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("async runtime")?;
    runtime.block_on(async {
        outlive_file_limits()?;
        let gateway = Gateway::bind(config, predictor).await.map_err(as_usage)?;
        let url = format!("{}://{}", if tls { "https" } else { "http" }, gateway.local_addr());
        note(&format!("gateway to {}, {order}", upstreams.join(", ")));
        let ready = Ready { url: &url, policy: &policy, upstreams };
        output.result(&ready, &ready_text(&url, wants_key))?;
        tokio::spawn(reload_on_hangup(gateway.handle(), args, path, stamp(&ranker)));
        let drained = gateway.run(stop()).await;
        if drained.abandoned_requests > 0 {
            note(&format!(
                "{} requests did not finish in time and were given up",
                drained.abandoned_requests
            ));
        }
        Ok(())
    })
}

/// Waits for the signal to stop; a second one ends the process at once.
async fn stop() {
    if let Err(error) = shutdown().await {
        note(&format!("{error:#}"));
    }
    note("stopping: no new requests; those under way may finish (again to stop at once)");
    tokio::spawn(async {
        if shutdown().await.is_ok() {
            std::process::exit(INTERRUPTED);
        }
    });
}

fn ready_text(url: &str, key: bool) -> String {
    let key = if key { " -H 'Authorization: Bearer KEY'" } else { "" };
    format!("ready on {url}, try:\n  curl {url}/v1/models{key}")
}

/// Reads the settings again on every SIGHUP.
async fn reload_on_hangup(handle: Handle, args: ServeArgs, path: Option<PathBuf>, mut ranker: RankerStamp) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        match reload(&handle, &args, path.as_deref(), &ranker).await {
            Ok(stamp) => {
                ranker = stamp;
                note("settings reloaded");
            }
            Err(error) => note(&format!("settings not reloaded, those before stay in force: {error:#}")),
        }
    }
}

async fn reload(
    handle: &Handle,
    args: &ServeArgs,
    path: Option<&Path>,
    before: &RankerStamp,
) -> Result<RankerStamp> {
    let (config, ranker) = settings(args.clone(), FileSettings::load(path)?)?;
    let now = stamp(&ranker);
    let keep = now == *before;
    handle.reload(config, predictor(&ranker)?, keep).await?;
    Ok(now)
}

/// What tells one ranker from another: its settings, and when its file was written.
type RankerStamp = (String, Option<SystemTime>);

fn stamp(ranker: &RankerSettings) -> RankerStamp {
    let written = ranker.ranker.as_ref().and_then(|path| std::fs::metadata(path).ok()?.modified().ok());
    (format!("{ranker:?}"), written)
}

fn predictor(ranker: &RankerSettings) -> Result<Option<Box<dyn Predictor>>> {
    let learning = ranker.learning()?;
    Ok(ranker.load()?.map(|ranker| match learning {
        Some(Learning { file }) => Box::new(AdaptiveRanker::new(ranker, file)) as Box<dyn Predictor>,
        None => ranker_scores(ranker),
    }))
}

/// `outrank check`: the settings make sense, and the upstreams answer.
pub(crate) fn check(args: ServeArgs, file: FileSettings, output: &Output) -> Result<()> {
    if !is_wanted(&args, &file) {
        refuse_settings(&args, &file)?;
        let serve = args.serve.or(file.serve);
        let ranker = args.ranker.or(file.ranker).load()?;
        HostConfig::to_serve(&serve, &args.engine.or(file.engine), &args.policy.or(file.policy), ranker)?;
        let checked = Checked { kind: "embedded engine", upstreams: Vec::new() };
        return output.result(&checked, "the settings of the embedded engine are good");
    }
    let (config, ranker) = settings(args, file)?;
    drop(predictor(&ranker)?);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("async runtime")?;
    let upstreams = runtime.block_on(outrank_gateway::check(&config)).map_err(as_usage)?;
    let mut text = String::from("the settings of the gateway are good");
    for reached in &upstreams {
        text.push_str(&format!("\n  {}: {}", reached.upstream, reached.says));
    }
    let all_answer = upstreams.iter().all(|reached| reached.up);
    output.result(&Checked { kind: "gateway", upstreams }, &text)?;
    if all_answer { Ok(()) } else { anyhow::bail!("not all upstreams answer") }
}

fn as_usage(error: GatewayError) -> anyhow::Error {
    match error {
        GatewayError::Config(error) => usage(error.to_string()),
        other => other.into(),
    }
}

/// The settings of the gateway, and of its ranker.
fn settings(args: ServeArgs, file: FileSettings) -> Result<(GatewayConfig, RankerSettings)> {
    let engine = args.engine.or(file.engine);
    if format!("{engine:?}") != format!("{:?}", EngineSettings::default()) {
        return Err(usage(
            "settings of the engine mean nothing with --upstream: the upstreams run the model; remove them",
        ));
    }
    let serve = args.serve.or(file.serve);
    if serve.model_name.is_some() || serve.default_max_tokens.is_some() {
        return Err(usage("--model-name and --default-max-tokens mean nothing with --upstream: remove them"));
    }
    let gateway = args.gateway.or(file.gateway);
    let mut config = GatewayConfig { port: DEFAULT_PORT, ..GatewayConfig::default() };
    config.otlp_endpoint = serve.otlp_endpoint();
    set(&mut config.host, serve.host);
    set(&mut config.port, serve.port);
    set(&mut config.policy, serve.policy);
    set(&mut config.shadow, serve.shadow);
    set(&mut config.drain_timeout, serve.drain_s.map(Duration::from_secs));
    config.policy_settings = args.policy.or(file.policy).settings()?;
    config.tenants = file.tenants;
    if let Some(key) = &serve.api_key {
        config.tenants.push(TenantConfig::with_key("default", key));
    }
    set_upstreams(&mut config, &gateway)?;
    set_limits(&mut config, &gateway)?;
    set_files(&mut config, &gateway)?;
    config.check().map_err(|error| usage(error.to_string()))?;
    Ok((config, args.ranker.or(file.ranker)))
}

fn set_upstreams(config: &mut GatewayConfig, gateway: &GatewaySettings) -> Result<()> {
    for line in gateway.upstream.iter().flatten() {
        let upstream: UpstreamConfig =
            line.parse().map_err(|error: outrank_gateway::ConfigError| usage(error.to_string()))?;
        config.upstreams.push(upstream);
    }
    config.upstreams_file.clone_from(&gateway.upstreams_file);
    let parsed = |name: &str, error: String| usage(format!("{name}: {error}"));
    if let Some(mode) = &gateway.mode {
        config.mode = mode.parse().map_err(|error| parsed("--mode", error))?;
    }
    if let Some(window) = &gateway.window {
        config.window = window.parse().map_err(|error| parsed("--window", error))?;
    }
    set(&mut config.ask_seats, gateway.ask_seats);
    config.affinity = match gateway.affinity.as_deref() {
        None | Some("none") => Affinity::None,
        Some("session") => Affinity::Session,
        Some("prefix") => Affinity::Prefix,
        Some(other) => {
            return Err(usage(format!("--affinity: expected none, session or prefix, found {other:?}")));
        }
    };
    Ok(())
}

fn set_limits(config: &mut GatewayConfig, gateway: &GatewaySettings) -> Result<()> {
    set(&mut config.max_queue_requests, gateway.max_queue);
    set(&mut config.max_retries, gateway.max_retries);
    set(&mut config.max_body_bytes, gateway.max_body_bytes);
    set(&mut config.max_connections, gateway.max_connections);
    set(&mut config.batch_delay_s, gateway.batch_delay_s);
    set(&mut config.default_delay_s, gateway.default_delay_s);
    config.spare_seats = gateway.spare_seats;
    set(&mut config.max_scoring_cpu_share, gateway.scoring_share);
    for (target, seconds, name) in [
        (&mut config.max_wait, gateway.max_wait_s, "max_wait_s"),
        (&mut config.request_timeout, gateway.request_timeout_s, "request_timeout_s"),
        (&mut config.first_byte_timeout, gateway.first_byte_timeout_s, "first_byte_timeout_s"),
        (&mut config.stall_timeout, gateway.stall_timeout_s, "stall_timeout_s"),
        (&mut config.client_timeout, gateway.client_timeout_s, "client_timeout_s"),
        (&mut config.outage_wait, gateway.outage_wait_s, "outage_wait_s"),
        (&mut config.health_interval, gateway.health_interval_s, "health_interval_s"),
    ] {
        set(target, seconds.map(|seconds| duration(name, seconds)).transpose()?);
    }
    Ok(())
}

fn duration(name: &str, seconds: f64) -> Result<Duration> {
    /// A year: longer than any wait, shorter than what clocks can add.
    const LONGEST_S: f64 = 31_536_000.0;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if seconds > 0.0 && seconds <= LONGEST_S => Ok(duration),
        _ => Err(usage(format!("{name} = {seconds}: must be a number of seconds above 0, a year at most"))),
    }
}

fn set_files(config: &mut GatewayConfig, gateway: &GatewaySettings) -> Result<()> {
    config.tls = match (&gateway.tls_cert, &gateway.tls_key) {
        (Some(cert), Some(key)) => Some(TlsConfig { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        _ => return Err(usage("--tls-cert and --tls-key go together: give both or none")),
    };
    let Some(path) = &gateway.journal else {
        if gateway.journal_mib.is_some()
            || gateway.journal_files.is_some()
            || gateway.journal_prompts.is_some()
            || gateway.journal_features.is_some()
        {
            return Err(usage("settings of the journal mean nothing without --journal FILE"));
        }
        return Ok(());
    };
    config.journal = Some(JournalConfig {
        path: path.clone(),
        max_file_bytes: gateway.journal_mib.unwrap_or(DEFAULT_JOURNAL_MIB).saturating_mul(1 << 20),
        max_files: gateway.journal_files.unwrap_or(DEFAULT_JOURNAL_FILES),
        prompts: gateway.journal_prompts.unwrap_or(false),
        features: gateway.journal_features.unwrap_or(true),
    });
    Ok(())
}
