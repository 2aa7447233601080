//! Settings of the gateway, parsed once.

use std::path::PathBuf;
use std::time::Duration;

use outrank_core::policies::PolicySettings;
use outrank_core::{MonitorSettings, OrderBook, ServiceModel};
use outrank_http::{Replay, ReplayError, ScorerLimits, Traces};
use thiserror::Error;

use crate::tenants::TenantConfig;
use crate::upstream::UpstreamConfig;

/// Seats of a window of which one is left free for a tenant below its share, unless the settings say how many are: enough for it hardly
/// to notice the others.
const SEATS_PER_SPARE_SEAT: u32 = 32;
/// Fewer than these keep one too, but for a shorter time (`desk/tenants.rs`); fewer still keep none, because it would be too large a part.
const LEAST_SEATS_WITH_SPARE: u32 = 4;
/// Share of the longest wait for which those who wait may be overtaken by later arrivals: who was let in has the rest of it to be served.
const OVERTAKING_SHARE: f64 = 0.5;

/// Settings that the gateway cannot start with; the text says what to do.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Who carries a request past the others when it is forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// Requests wait here, and a window of them is at the upstream.
    #[default]
    Hold,
    /// Requests are forwarded at once, with their deadline as the priority that the engine orders by.
    Stamp,
}

/// How the engine is told a priority.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stamp {
    /// Field `priority` of the body, lower first (vLLM).
    #[default]
    Body,
    /// Field `priority` of the body, higher first (SGLang).
    BodyHigherFirst,
    /// Header `x-vllm-priority`, lower first.
    Header,
}

/// Requests that may be at an upstream in hold mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WindowConfig {
    /// As many as the upstream serves without queueing them itself, found while serving.
    Auto {
        /// At least.
        min_requests: u32,
        /// At most.
        max_requests: u32,
    },
    /// So many.
    Fixed(u32),
}

impl Default for WindowConfig {
    fn default() -> Self {
        Self::Auto { min_requests: 1, max_requests: 512 }
    }
}

/// Whether requests of the same conversation prefer the same replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Affinity {
    /// They do not.
    #[default]
    None,
    /// By the `user` field or the header `x-session-id`.
    Session,
    /// By the beginning of the prompt, for the sake of prefix caches.
    Prefix,
}

/// TLS towards clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsConfig {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// The journal of requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalConfig {
    /// The file; older ones get `.1`, `.2` and so on appended.
    pub path: PathBuf,
    /// Size at which a new file is begun, in bytes.
    pub max_file_bytes: u64,
    /// Files kept, the current one included.
    pub max_files: u32,
    /// Whether prompts are written too.
    pub prompts: bool,
    /// Whether the hashed features of what was scored are written, for training without prompts. Words can be guessed from them
    /// with a dictionary: they are not anonymous.
    pub features: bool,
}

/// All settings.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// TLS towards clients; plain HTTP without.
    pub tls: Option<TlsConfig>,
    /// The upstreams to begin with.
    pub upstreams: Vec<UpstreamConfig>,
    /// A file with an upstream a line, watched for changes.
    pub upstreams_file: Option<PathBuf>,
    /// Mode of upstreams that name none.
    pub mode: Mode,
    /// Window of upstreams that name none.
    pub window: WindowConfig,
    /// Whether upstreams are asked how many requests they work on at once, which bounds a window that is `auto`.
    pub ask_seats: bool,
    /// Name of the policy.
    pub policy: String,
    /// Settings of the policies.
    pub policy_settings: PolicySettings,
    /// When to stop following the ranker.
    pub monitor: MonitorSettings,
    /// Order by arrival, and count what the policy would have saved.
    pub shadow: bool,
    /// Who may ask; everybody, if empty.
    pub tenants: Vec<TenantConfig>,
    /// Head start that requests of class `default` concede to later interactive ones, in seconds.
    pub default_delay_s: f64,
    /// Head start that requests of class `batch` concede to later interactive ones, in seconds.
    pub batch_delay_s: f64,
    /// Seats of each upstream in hold mode, at most half, that tenants who have their share leave free for others that are about;
    /// unless said, one in 32 of its window, and one of 4 to 31.
    pub spare_seats: Option<u32>,
    /// Same replica for the same conversation.
    pub affinity: Affinity,
    /// Requests that may wait, over all models.
    pub max_queue_requests: usize,
    /// Refuse requests that are likely to wait longer than this before they go to an upstream. Nobody who was let in is cut off by it.
    pub max_wait: Duration,
    /// Time for a request from arrival to the last byte.
    pub request_timeout: Duration,
    /// Time until an upstream has accepted a connection.
    pub connect_timeout: Duration,
    /// Silence of an upstream before its answer begins after which it is given up. Answers that are not streamed begin at their end.
    pub first_byte_timeout: Duration,
    /// Silence of an upstream within an answer after which it is given up.
    pub stall_timeout: Duration,
    /// How long a client may read nothing while an answer waits for it.
    pub client_timeout: Duration,
    /// Further attempts, before the first byte, of a request that an upstream failed.
    pub max_retries: u32,
    /// How long requests wait while none of their upstreams answers.
    pub outage_wait: Duration,
    /// Seconds between two health checks of an upstream.
    pub health_interval: Duration,
    /// How long a request in stamp mode waits for its score.
    pub score_deadline: Duration,
    /// Prompts that may wait to be scored.
    pub max_scoring_queue: usize,
    /// CPU time that scoring may take, as a share of that of all cores; what is beyond it goes unscored.
    pub max_scoring_cpu_share: f64,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// Client connections at once.
    pub max_connections: usize,
    /// How long running requests may take to finish at shutdown.
    pub drain_timeout: Duration,
    /// Ended requests that `/v1/outrank/requests/{id}` remembers.
    pub max_finished_records: usize,
    /// The journal.
    pub journal: Option<JournalConfig>,
    /// OTLP collector that traces are sent to.
    pub otlp_endpoint: Option<String>,
    /// First guess of the mean output length, in tokens.
    pub unscored_tokens: f64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8000,
            tls: None,
            upstreams: Vec::new(),
            upstreams_file: None,
            mode: Mode::Hold,
            window: WindowConfig::default(),
            ask_seats: true,
            policy: "outrank".into(),
            policy_settings: PolicySettings::default(),
            monitor: MonitorSettings::default(),
            shadow: false,
            tenants: Vec::new(),
            default_delay_s: 0.0,
            batch_delay_s: 60.0,
            spare_seats: None,
            affinity: Affinity::None,
            max_queue_requests: 1024,
            max_wait: Duration::from_secs(600),
            request_timeout: Duration::from_secs(600),
            connect_timeout: Duration::from_secs(2),
            first_byte_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(60),
            client_timeout: Duration::from_secs(30),
            max_retries: 2,
            outage_wait: Duration::from_secs(30),
            health_interval: Duration::from_secs(2),
            score_deadline: Duration::from_millis(5),
            max_scoring_queue: 1024,
            max_scoring_cpu_share: ScorerLimits::DEFAULT_MAX_CPU_SHARE,
            max_body_bytes: 4 << 20,
            max_connections: 16_384,
            drain_timeout: Duration::from_secs(30),
            max_finished_records: 1024,
            journal: None,
            otlp_endpoint: None,
            unscored_tokens: 200.0,
        }
    }
}

impl GatewayConfig {
    /// Checks what [`crate::Gateway::bind`] would refuse, but for the address and the files.
    ///
    /// # Errors
    /// [`ConfigError`] naming the setting to change.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |message: String| Err(ConfigError(message));
        if self.upstreams.is_empty() && self.upstreams_file.is_none() {
            return fail(
                "no upstream: name at least one with --upstream URL, or a file with --upstreams-file".into(),
            );
        }
        for (at, upstream) in self.upstreams.iter().enumerate() {
            if self.upstreams[..at].iter().any(|other| other.url == upstream.url) {
                return fail(format!("the upstream {} is named twice: remove one", upstream.url));
            }
        }
        for (name, value) in
            [("default_delay_s", self.default_delay_s), ("batch_delay_s", self.batch_delay_s)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return fail(format!("{name} = {value}: must be a finite number of at least 0"));
            }
        }
        if self.max_body_bytes == 0 || self.max_connections == 0 {
            return fail("max_body_bytes and max_connections must be at least 1".into());
        }
        if !(self.max_scoring_cpu_share > 0.0 && self.max_scoring_cpu_share <= 1.0) {
            return fail("scoring_share must be above 0 and at most 1".into());
        }
        if self.max_wait.is_zero() {
            return fail("max_wait_s must be above 0".into());
        }
        if self.health_interval.is_zero() || self.request_timeout.is_zero() {
            return fail("health_interval_s and request_timeout_s must be above 0".into());
        }
        if let Some(endpoint) = &self.otlp_endpoint {
            Traces::check(endpoint).map_err(|error| ConfigError(error.to_string()))?;
        }
        crate::tenants::check(&self.tenants)?;
        self.book(1).map(drop)
    }

    /// What scoring may take.
    pub(crate) fn scorer_limits(&self) -> ScorerLimits {
        ScorerLimits { max_queue: self.max_scoring_queue, max_cpu_share: self.max_scoring_cpu_share }
    }

    /// Seats of a window of so many that tenants who have their share leave free: of few no more than half.
    pub(crate) fn spare_seats_of(&self, seats: u32) -> u32 {
        let usual = (seats / SEATS_PER_SPARE_SEAT).max(u32::from(seats >= LEAST_SEATS_WITH_SPARE));
        self.spare_seats.unwrap_or(usual).min(seats / 2)
    }

    /// An order book of these settings. In shadow mode it goes by arrival.
    pub(crate) fn book(&self, seats: u32) -> Result<OrderBook, ConfigError> {
        let name = if self.shadow { "fcfs" } else { self.policy.as_str() };
        let service = ServiceModel { decode_s: 0.02, prefill_s: 1e-4 };
        self.replay(seats).book(name, service).map_err(|error| {
            ConfigError(match error {
                ReplayError::Unsuited(error) => {
                    format!("{error}; a gateway can serve outrank, fcfs, sjf, tie and oracle-sjf")
                }
                other => other.to_string(),
            })
        })
    }

    /// How the policy is compared with order of arrival on so many seats.
    pub(crate) fn replay(&self, seats: u32) -> Replay {
        let mut settings = self.policy_settings;
        let most_s = OVERTAKING_SHARE * self.max_wait.as_secs_f64();
        settings.outrank.patience_s = settings.outrank.patience_s.min(most_s);
        Replay {
            policy: self.policy.clone(),
            settings,
            monitor: self.monitor,
            unscored_tokens: self.unscored_tokens,
            seats: seats.max(1),
        }
    }
}
