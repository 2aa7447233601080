//! Settings of the server, the engine, the policies and the ranker: flags, then environment, then file.
//!
//! Each setting is declared once, as a flag, a variable and a key of the file at the same time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use outrank_core::policies::{NAMES, PolicySettings};
use serde::Deserialize;

use crate::error::usage;

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "outrank.toml";

macro_rules! settings {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, clap::Args, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct $name { $($(#[$field_meta])* pub(crate) $field: Option<$type>,)* }

        impl $name {
            /// These settings, and those of the file where these are not set.
            pub(crate) fn or(self, file: Self) -> Self {
                Self { $($field: self.$field.or(file.$field),)* }
            }
        }
    };
}

settings! {
    /// Table `[serve]`.
    ServeSettings {
        /// Order of requests: outrank, fcfs, ltr, sjf, class, po, mlfq, hrrn, tie, boost, oracle-sjf or oracle-srtf
        /// [default: outrank]
        #[arg(long, env = "OUTRANK_POLICY", value_name = "NAME", value_parser = policy_name)]
        policy: String,
        /// Address to listen on [default: 127.0.0.1]
        #[arg(long, env = "OUTRANK_HOST", value_name = "HOST")]
        host: String,
        /// Port to listen on; 0 takes a free one [default: 8000]
        #[arg(long, env = "OUTRANK_PORT", value_name = "PORT")]
        port: u16,
        /// Name of the model in the API [default: smollm2-135m-instruct, or that of the --model file]
        #[arg(long, env = "OUTRANK_MODEL_NAME", value_name = "NAME")]
        model_name: String,
        /// Clients must send this key as `Authorization: Bearer KEY` [default: none needed]
        #[arg(long, env = "OUTRANK_API_KEY", value_name = "KEY", hide_env_values = true)]
        api_key: String,
        /// Output limit of requests that name none, in tokens [default: 512]
        #[arg(long, env = "OUTRANK_DEFAULT_MAX_TOKENS", value_name = "TOKENS")]
        default_max_tokens: u32,
        /// Seconds that running requests may take to finish on SIGTERM or Ctrl-C [default: 30]
        #[arg(long, env = "OUTRANK_DRAIN_S", value_name = "SECONDS")]
        drain_s: u64,
        /// Send a trace of each request to this OpenTelemetry collector (OTLP over HTTP), such as http://localhost:4318 [default: none
        /// is sent]
        #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
        otlp_endpoint: String,
        /// Order by arrival, and count in outrank_shadow_saved_seconds what the policy would save
        #[arg(long, env = "OUTRANK_SHADOW", value_name = "BOOL", num_args = 0..=1, require_equals = true,
              default_missing_value = "true")]
        shadow: bool,
    }
}

impl ServeSettings {
    /// Name of the policy.
    pub(crate) fn policy(&self) -> &str {
        self.policy.as_deref().unwrap_or(NAMES[0])
    }

    /// Where traces go. An empty variable is none, as OpenTelemetry has it.
    pub(crate) fn otlp_endpoint(&self) -> Option<String> {
        self.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty())
    }
}

settings! {
    /// Table `[engine]`.
    EngineSettings {
        /// Model, a GGUF file [default: SmolLM2-135M-Instruct as `make model` fetches it, requantised to Q8_0 once]
        #[arg(long, env = "OUTRANK_MODEL", value_name = "FILE", help_heading = "Engine")]
        model: PathBuf,
        /// System message of chats that bring none [default: empty for the default model, for a --model file what its
        /// chat template says]
        #[arg(long, env = "OUTRANK_SYSTEM_PROMPT", value_name = "TEXT", help_heading = "Engine")]
        system_prompt: String,
        /// Requests in the batch at once [default: 8]
        #[arg(long, env = "OUTRANK_SEATS", value_name = "N", help_heading = "Engine")]
        seats: u32,
        /// Longest prompt and answer together, in tokens; memory is taken for seats x context [default: 2048]
        #[arg(long, env = "OUTRANK_CONTEXT", value_name = "TOKENS", help_heading = "Engine")]
        context: u32,
        /// Threads of the model; fewer can be faster on a busy machine [default: one per core]
        #[arg(long, env = "OUTRANK_THREADS", value_name = "N", help_heading = "Engine")]
        threads: u32,
        /// Waiting requests at most; beyond it clients get 429 and Retry-After [default: 1024]
        #[arg(long, env = "OUTRANK_QUEUE", value_name = "N", help_heading = "Engine")]
        queue: usize,
        /// Tokens of one step, decode and prefill together [default: 256]
        #[arg(long, env = "OUTRANK_STEP_TOKENS", value_name = "TOKENS", help_heading = "Engine")]
        step_tokens: u32,
        /// Prefill tokens of one step while others decode: bounds the gap that a long prompt opens [default: 32]
        #[arg(long, env = "OUTRANK_PREFILL_CHUNK", value_name = "TOKENS", help_heading = "Engine")]
        prefill_chunk: u32,
        /// KV memory in blocks of 16 tokens [default: what all seats at full context need]
        #[arg(long, env = "OUTRANK_KV_BLOCKS", value_name = "BLOCKS", help_heading = "Engine")]
        kv_blocks: u32,
        /// Append one JSON line per engine step to this file: what it held, and how long it took
        #[arg(long, env = "OUTRANK_STEP_LOG", value_name = "FILE", help_heading = "Engine")]
        step_log: PathBuf,
    }
}

settings! {
    /// Table `[gateway]`.
    GatewaySettings {
        /// Order requests in front of this OpenAI-compatible server instead of running a model; repeatable. Settings of its own may
        /// follow the URL: "http://gpu1:8000 weight=2 window=32 mode=stamp stamp=body models=a,b key_env=VAR limit=64 dns=yes"
        #[arg(long, env = "OUTRANK_UPSTREAM", value_name = "URL", value_delimiter = ';', help_heading = "Gateway")]
        upstream: Vec<String>,
        /// File with an upstream a line, watched for changes
        #[arg(long, env = "OUTRANK_UPSTREAMS_FILE", value_name = "FILE", help_heading = "Gateway")]
        upstreams_file: PathBuf,
        /// hold: requests wait here, a window of them is at each upstream; stamp: all are forwarded at once with a priority that the
        /// engine orders by [default: hold]
        #[arg(long, env = "OUTRANK_MODE", value_name = "MODE", help_heading = "Gateway")]
        mode: String,
        /// Requests at each upstream in hold mode: a number, MIN-MAX, or auto, which finds the knee [default: auto]
        #[arg(long, env = "OUTRANK_WINDOW", value_name = "N", help_heading = "Gateway")]
        window: String,
        /// Ask upstreams how many requests they work on at once (llama.cpp, SGLang), which bounds a window that is auto [default:
        /// true]
        #[arg(long, env = "OUTRANK_ASK_SEATS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
              default_missing_value = "true", help_heading = "Gateway")]
        ask_seats: bool,
        /// Waiting requests at most; beyond it clients get 429 and Retry-After [default: 1024]
        #[arg(long, env = "OUTRANK_MAX_QUEUE", value_name = "N", help_heading = "Gateway")]
        max_queue: usize,
        /// Refuse requests at once, with 429 and Retry-After, that are likely to wait here for longer than this, in seconds, before they
        /// go to an upstream; who was let in is not cut off for having waited longer, and is not overtaken by who came more than
        /// half of it later. As long as OpenAI's clients wait [default: 600]
        #[arg(long, env = "OUTRANK_MAX_WAIT_S", value_name = "SECONDS", help_heading = "Gateway")]
        max_wait_s: f64,
        /// Seconds that a request may take from arrival to its last byte; clients may ask for less (x-outrank-timeout-ms) [default: 600]
        #[arg(long, env = "OUTRANK_REQUEST_TIMEOUT_S", value_name = "SECONDS", help_heading = "Gateway")]
        request_timeout_s: f64,
        /// Seconds until an answer must have begun at the upstream [default: 300]
        #[arg(long, env = "OUTRANK_FIRST_BYTE_TIMEOUT_S", value_name = "SECONDS", help_heading = "Gateway")]
        first_byte_timeout_s: f64,
        /// Seconds of silence within an answer after which the upstream is given up [default: 60]
        #[arg(long, env = "OUTRANK_STALL_TIMEOUT_S", value_name = "SECONDS", help_heading = "Gateway")]
        stall_timeout_s: f64,
        /// Seconds that a client may read nothing before it is disconnected [default: 30]
        #[arg(long, env = "OUTRANK_CLIENT_TIMEOUT_S", value_name = "SECONDS", help_heading = "Gateway")]
        client_timeout_s: f64,
        /// Further attempts of a request that an upstream failed before its first byte [default: 2]
        #[arg(long, env = "OUTRANK_MAX_RETRIES", value_name = "N", help_heading = "Gateway")]
        max_retries: u32,
        /// Seconds that requests wait while none of their upstreams can be reached [default: 30]
        #[arg(long, env = "OUTRANK_OUTAGE_WAIT_S", value_name = "SECONDS", help_heading = "Gateway")]
        outage_wait_s: f64,
        /// Seconds between two health checks of an upstream [default: 2]
        #[arg(long, env = "OUTRANK_HEALTH_INTERVAL_S", value_name = "SECONDS", help_heading = "Gateway")]
        health_interval_s: f64,
        /// Largest request body, in bytes [default: 4194304]
        #[arg(long, env = "OUTRANK_MAX_BODY_BYTES", value_name = "BYTES", help_heading = "Gateway")]
        max_body_bytes: usize,
        /// Client connections at once [default: 16384]
        #[arg(long, env = "OUTRANK_MAX_CONNECTIONS", value_name = "N", help_heading = "Gateway")]
        max_connections: usize,
        /// Same replica for the same conversation: none, session (x-session-id or `user`) or prefix [default: none]
        #[arg(long, env = "OUTRANK_AFFINITY", value_name = "KIND", help_heading = "Gateway")]
        affinity: String,
        /// Seconds of later arrivals that requests of class batch let by (x-outrank-class) [default: 60]
        #[arg(long, env = "OUTRANK_BATCH_DELAY_S", value_name = "SECONDS", help_heading = "Gateway")]
        batch_delay_s: f64,
        /// Seconds of later interactive arrivals that requests of class default let by [default: 0]
        #[arg(long, env = "OUTRANK_DEFAULT_DELAY_S", value_name = "SECONDS", help_heading = "Gateway")]
        default_delay_s: f64,
        /// Seats of each window kept free for tenants below their share, while several send requests [default: one
        /// in 32; of 4 to 31 seats one, for a few services after the newest request of such a tenant]
        #[arg(long, env = "OUTRANK_SPARE_SEATS", value_name = "N", help_heading = "Gateway")]
        spare_seats: u32,
        /// Share of the CPU time of all cores, above 0 and at most 1, that scoring may take; a request beyond it goes unscored, by
        /// arrival [default: 0.03125]
        #[arg(long, env = "OUTRANK_SCORING_SHARE", value_name = "SHARE", help_heading = "Gateway")]
        scoring_share: f64,
        /// Certificate chain towards clients, PEM; with --tls-key
        #[arg(long, env = "OUTRANK_TLS_CERT", value_name = "FILE", help_heading = "Gateway")]
        tls_cert: PathBuf,
        /// Private key of the certificate, PEM
        #[arg(long, env = "OUTRANK_TLS_KEY", value_name = "FILE", help_heading = "Gateway")]
        tls_key: PathBuf,
        /// Write a line for each answered request, a trace that `outrank simulate --from-journal` replays and `outrank train
        /// --from-journal` learns from
        #[arg(long, env = "OUTRANK_JOURNAL", value_name = "FILE", help_heading = "Gateway")]
        journal: PathBuf,
        /// Size at which a new journal is begun, in MiB [default: 64]
        #[arg(long, env = "OUTRANK_JOURNAL_MIB", value_name = "MIB", help_heading = "Gateway")]
        journal_mib: u64,
        /// Journal files kept [default: 4]
        #[arg(long, env = "OUTRANK_JOURNAL_FILES", value_name = "N", help_heading = "Gateway")]
        journal_files: u32,
        /// Write prompts into the journal too
        #[arg(long, env = "OUTRANK_JOURNAL_PROMPTS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
              default_missing_value = "true", help_heading = "Gateway")]
        journal_prompts: bool,
        /// Write hashed features of the prompts into the journal, which `outrank train --from-journal` learns from. Words can be
        /// guessed from them with a dictionary: they are not anonymous [default: true]
        #[arg(long, env = "OUTRANK_JOURNAL_FEATURES", value_name = "BOOL", num_args = 0..=1, require_equals = true,
              default_missing_value = "true", help_heading = "Gateway")]
        journal_features: bool,
    }
}

settings! {
    /// Table `[policy]`.
    PolicyFlags {
        /// outrank: head start of later arrivals over a long request, per second of backlog [default: 3]
        #[arg(long, env = "OUTRANK_BACKLOG_FACTOR", value_name = "RATIO", help_heading = "Policy")]
        backlog_factor: f64,
        /// outrank: ... and per second of a mean request's service [default: 4]
        #[arg(long, env = "OUTRANK_SERVICE_FACTOR", value_name = "RATIO", help_heading = "Policy")]
        service_factor: f64,
        /// outrank: share of the work, from 0 to 1, whose requests count as short and go first [default: 0.1]
        #[arg(long, env = "OUTRANK_SHORT_SHARE", value_name = "SHARE", help_heading = "Policy")]
        short_share: f64,
        /// outrank: share of the seats, from 0 to 1, that may stay free for a few steps while many wait, so that several requests
        /// start in one step; less than two seats is none [default: 0.015625]
        #[arg(long, env = "OUTRANK_GATHER_SHARE", value_name = "SHARE", help_heading = "Policy")]
        gather_share: f64,
        /// outrank: longest head start of any later arrival, in seconds; 0 is FCFS [default: 300]
        #[arg(long, env = "OUTRANK_PATIENCE_S", value_name = "SECONDS", help_heading = "Policy")]
        patience_s: f64,
        /// outrank: preempt only for a gain of this many mean services in the deadline [default: 12]
        #[arg(long, env = "OUTRANK_MIN_GAIN_SERVICES", value_name = "RATIO", help_heading = "Policy")]
        min_gain_services: f64,
        /// outrank: ... and of this multiple of what the switch costs [default: 20]
        #[arg(long, env = "OUTRANK_SWITCH_COST_FACTOR", value_name = "RATIO", help_heading = "Policy")]
        switch_cost_factor: f64,
        /// outrank: requests paused in one step; 0 switches preemption off [default: 1]
        #[arg(long, env = "OUTRANK_MAX_PREEMPTIONS_PER_STEP", value_name = "N", help_heading = "Policy")]
        max_preemptions_per_step: u32,
        /// outrank: times that one request may be paused [default: 2]
        #[arg(long, env = "OUTRANK_MAX_PREEMPTIONS_PER_REQUEST", value_name = "N", help_heading = "Policy")]
        max_preemptions_per_request: u32,
        /// ltr: steps without a turn after which a request is promoted [default: 200]
        #[arg(long, env = "OUTRANK_LTR_THRESHOLD_STEPS", value_name = "STEPS", help_heading = "Policy")]
        ltr_threshold_steps: u64,
        /// ltr: steps in the batch that a promotion lasts [default: 10]
        #[arg(long, env = "OUTRANK_LTR_QUANTUM_STEPS", value_name = "STEPS", help_heading = "Policy")]
        ltr_quantum_steps: u32,
    }
}

settings! {
    /// Table `[ranker]`.
    RankerSettings {
        /// Ranker, a file that `outrank train` wrote [default: the one inside the program]
        #[arg(long, env = "OUTRANK_RANKER", value_name = "FILE", help_heading = "Ranker")]
        ranker: PathBuf,
        /// Predict nothing: every request is ordered as FCFS
        #[arg(long, env = "OUTRANK_NO_RANKER", value_name = "BOOL", num_args = 0..=1, require_equals = true,
              default_missing_value = "true", help_heading = "Ranker")]
        no_ranker: bool,
        /// Do not learn from the requests that are served
        #[arg(long, env = "OUTRANK_NO_LEARN", value_name = "BOOL", num_args = 0..=1, require_equals = true,
              default_missing_value = "true", help_heading = "Ranker")]
        no_learn: bool,
        /// Keep what is learned from served requests in this file, and start from it next time
        #[arg(long, env = "OUTRANK_LEARNED", value_name = "FILE", help_heading = "Ranker")]
        learned: PathBuf,
    }
}

/// The settings file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FileSettings {
    pub(crate) serve: ServeSettings,
    pub(crate) gateway: GatewaySettings,
    /// Tables `[[tenants]]`: who may use the gateway.
    pub(crate) tenants: Vec<outrank_gateway::TenantConfig>,
    pub(crate) engine: EngineSettings,
    pub(crate) policy: PolicyFlags,
    pub(crate) ranker: RankerSettings,
}

impl FileSettings {
    /// Reads the named file, or ./outrank.toml if there is one.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        let (path, named) = path.map_or((Path::new(DEFAULT_FILE), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if !named && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).with_context(|| format!("settings file {}", path.display())),
        };
        let settings: Self = toml::from_str(&text)
            .map_err(|error| usage(format!("{}: {}", path.display(), error.to_string().trim())))?;
        if let Some(name) = &settings.serve.policy {
            policy_name(name).map_err(|error| usage(format!("{}: serve.policy: {error}", path.display())))?;
        }
        Ok(settings)
    }
}

impl PolicyFlags {
    /// What the policies are told: the defaults, and what was set.
    pub(crate) fn settings(&self) -> Result<PolicySettings> {
        let mut settings = PolicySettings::default();
        let outrank = &mut settings.outrank;
        set(&mut outrank.backlog_factor, self.backlog_factor);
        set(&mut outrank.service_factor, self.service_factor);
        set(&mut outrank.short_share, self.short_share);
        set(&mut outrank.gather_share, self.gather_share);
        set(&mut outrank.patience_s, self.patience_s);
        set(&mut outrank.min_gain_services, self.min_gain_services);
        set(&mut outrank.switch_cost_factor, self.switch_cost_factor);
        set(&mut outrank.max_preemptions_per_step, self.max_preemptions_per_step);
        set(&mut outrank.max_preemptions_per_request, self.max_preemptions_per_request);
        outrank.check().map_err(|error| usage(error.to_string()))?;
        set(&mut settings.ltr.threshold_steps, self.ltr_threshold_steps);
        set(&mut settings.ltr.quantum_steps, self.ltr_quantum_steps);
        Ok(settings)
    }
}

/// How the server learns from the requests that it serves.
#[derive(Debug, Clone)]
pub(crate) struct Learning {
    /// Where the learned ranker is kept.
    pub(crate) file: Option<PathBuf>,
}

impl RankerSettings {
    /// The ranker to serve with, if any.
    pub(crate) fn load(&self) -> Result<Option<outrank_ranker::Ranker>> {
        let kept = self.learned.as_ref().filter(|path| path.is_file());
        match (self.no_ranker.unwrap_or(false), &self.ranker) {
            (true, Some(_)) => Err(usage("--ranker and --no-ranker exclude each other: keep one")),
            (true, None) => Ok(None),
            (false, path) => crate::files::ranker(kept.or(path.as_ref()).map(PathBuf::as_path)).map(Some),
        }
    }

    /// Whether served requests are learned from, and where that is kept.
    pub(crate) fn learning(&self) -> Result<Option<Learning>> {
        if self.no_learn.unwrap_or(false) || self.no_ranker.unwrap_or(false) {
            return match &self.learned {
                Some(_) => Err(usage("--learned needs learning: leave --no-learn and --no-ranker away")),
                None => Ok(None),
            };
        }
        if let Some(file) = &self.learned {
            crate::files::check_out(file)?;
        }
        Ok(Some(Learning { file: self.learned.clone() }))
    }
}

/// Sets what was given.
pub(crate) fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// Checks the name of a policy.
pub(crate) fn policy_name(name: &str) -> std::result::Result<String, String> {
    if NAMES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(format!("no policy is called {name:?}; choose from {}", NAMES.join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::Args;
    use outrank_engine::EngineConfig;

    use super::*;

    fn file(text: &str) -> Result<FileSettings> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("outrank.toml");
        std::fs::write(&path, text)?;
        FileSettings::load(Some(&path))
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file = file("[policy]\nbacklog_factor = 1\npatience_s = 7\n").unwrap();
        let flags = PolicyFlags { backlog_factor: Some(5.0), ..PolicyFlags::default() };
        let settings = flags.or(file.policy).settings().unwrap();
        assert_eq!((settings.outrank.backlog_factor, settings.outrank.patience_s), (5.0, 7.0));
        assert_eq!(settings.ltr, PolicySettings::default().ltr);
    }

    #[test]
    fn the_help_tells_the_real_defaults() {
        let command = EngineSettings::augment_args(PolicyFlags::augment_args(clap::Command::new("outrank")));
        let (PolicySettings { outrank, ltr, .. }, engine) =
            (PolicySettings::default(), EngineConfig::default());
        for (flag, default) in [
            ("backlog_factor", outrank.backlog_factor.to_string()),
            ("service_factor", outrank.service_factor.to_string()),
            ("short_share", outrank.short_share.to_string()),
            ("gather_share", outrank.gather_share.to_string()),
            ("patience_s", outrank.patience_s.to_string()),
            ("min_gain_services", outrank.min_gain_services.to_string()),
            ("switch_cost_factor", outrank.switch_cost_factor.to_string()),
            ("max_preemptions_per_step", outrank.max_preemptions_per_step.to_string()),
            ("max_preemptions_per_request", outrank.max_preemptions_per_request.to_string()),
            ("ltr_threshold_steps", ltr.threshold_steps.to_string()),
            ("ltr_quantum_steps", ltr.quantum_steps.to_string()),
            ("seats", engine.seats.to_string()),
            ("context", engine.context_tokens.to_string()),
            ("queue", engine.max_queue_requests.to_string()),
            ("step_tokens", engine.step_tokens.to_string()),
            ("prefill_chunk", engine.prefill_chunk_tokens.to_string()),
        ] {
            let flag = command.get_arguments().find(|argument| argument.get_id() == flag).unwrap();
            let help = flag.get_help().unwrap().to_string();
            assert!(help.ends_with(&format!("[default: {default}]")), "{}: {help}", flag.get_id());
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let error = file("[engine]\nseatz = 3\n").unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("outrank.toml") && text.contains("seatz") && crate::error::is_usage(&error),
            "{text}"
        );
    }

    #[test]
    fn a_value_out_of_range_is_refused_wherever_it_comes_from() {
        let settings = file("[policy]\nshort_share = nan\n").unwrap();
        assert!(format!("{:#}", settings.policy.settings().unwrap_err()).contains("short_share"));
        let settings = file("[policy]\ngather_share = 3\n").unwrap();
        assert!(
            format!("{:#}", settings.policy.settings().unwrap_err())
                .contains("gather_share = 3: must be a share from 0 to 1")
        );
        assert!(format!("{:#}", file("[serve]\npolicy = \"lottery\"\n").unwrap_err()).contains("oracle-sjf"));
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        assert!(FileSettings::load(Some(Path::new("/nonexistent/outrank.toml"))).is_err());
    }
}
