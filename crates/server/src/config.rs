//! Settings of the server.

use serde::{Deserialize, Serialize};

/// Settings of the HTTP server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
        }
    }
}
