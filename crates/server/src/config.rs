//! Settings of the server.

use outrank_http::{Replay, ScorerLimits, Traces};
use serde::{Deserialize, Serialize};

use crate::ServerError;

/// Settings of the HTTP server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Name under which the model is served: what clients send as `model`.
    pub model_name: String,
    /// Keys that clients of `/v1` must present, compared exactly; without any, everyone is served.
    pub api_keys: Vec<String>,
    /// Longest request body, in bytes.
    pub max_body_bytes: usize,
    /// How long a request waits for its score, in milliseconds; then it is submitted without one and the score
    /// follows.
    pub score_deadline_ms: u64,
    /// Prompts that may wait for the scorer; beyond it requests go unscored.
    pub max_scoring_queue: usize,
    /// Largest `n`: outputs of one prompt.
    pub max_n: u32,
    /// Prompts in one completions request, at most.
    pub max_prompts: u32,
    /// Output limit of a request that names none, in tokens; less where the context leaves less.
    pub default_max_tokens: u32,
    /// How long running requests may take to finish at shutdown, in seconds.
    pub drain_timeout_s: u64,
    /// What clients are told to wait before they try again while the server shuts down, in seconds.
    pub drain_retry_after_s: u64,
    /// Finished requests that `/v1/outrank/requests/{id}` remembers.
    pub max_finished_records: usize,
    /// OTLP collector that traces are sent to.
    pub otlp_endpoint: Option<String>,
    /// The policy whose savings against order of arrival are counted; without one, none are.
    pub replay: Option<Replay>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 8080,
            model_name: "default".into(),
            api_keys: Vec::new(),
            max_body_bytes: 4 << 20,
            score_deadline_ms: 5,
            max_scoring_queue: 1024,
            max_n: 16,
            max_prompts: 64,
            default_max_tokens: 512,
            drain_timeout_s: 30,
            drain_retry_after_s: 5,
            max_finished_records: 1024,
            otlp_endpoint: None,
            replay: None,
        }
    }
}

impl ServerConfig {
    /// Checks what [`crate::Server::bind`] would refuse, but for the address.
    ///
    /// # Errors
    /// [`ServerError::Config`] naming the setting to change.
    pub fn check(&self) -> Result<(), ServerError> {
        let fail = |message| Err(ServerError::Config(message));
        if self.model_name.is_empty() {
            return fail("model_name is empty: give the model a name");
        }
        if self.api_keys.iter().any(|key| key.is_empty() || key.trim() != key) {
            return fail("an API key is empty or has spaces around it: no client could present it");
        }
        if self.max_n == 0
            || self.max_prompts == 0
            || self.max_body_bytes == 0
            || self.default_max_tokens == 0
        {
            return fail("max_n, max_prompts, max_body_bytes and default_max_tokens must be at least 1");
        }
        if let Some(endpoint) = &self.otlp_endpoint {
            Traces::check(endpoint)?;
        }
        Ok(())
    }

    /// What scoring may take.
    pub(crate) fn scorer_limits(&self) -> ScorerLimits {
        ScorerLimits { max_queue: self.max_scoring_queue, max_cpu_share: ScorerLimits::DEFAULT_MAX_CPU_SHARE }
    }
}
