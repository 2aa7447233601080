//! Flags, and the requests that they ask for.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde_json::json;

/// Prompts that requests take in turn.
const PROMPTS: u64 = 64;
const WORDS: [&str; 16] = [
    "please",
    "explain",
    "how",
    "many",
    "rivers",
    "write",
    "short",
    "story",
    "about",
    "lighthouse",
    "list",
    "steps",
    "why",
    "translate",
    "into",
    "poem",
];

/// Loads a gateway.
#[derive(Debug, Parser)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keeps connections busy, one request after the other on each
    Closed(ClosedArgs),
    /// Sends at a fixed rate, whatever comes back
    Open(OpenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ClosedArgs {
    #[command(flatten)]
    pub(crate) what: What,
    /// Requests in flight at all times
    #[arg(long, default_value_t = 32)]
    pub(crate) connections: usize,
    /// Seconds over which the connections start
    #[arg(long, default_value_t = 0.0)]
    pub(crate) ramp_s: f64,
    /// Seconds between lines of a longer run on stderr and in `windows`; 0: none
    #[arg(long, default_value_t = 0.0)]
    pub(crate) window_s: f64,
}

#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    #[command(flatten)]
    pub(crate) what: What,
    /// Requests a second
    #[arg(long)]
    pub(crate) rate: f64,
    /// Draw the gaps (Poisson) with this seed, instead of equal ones
    #[arg(long)]
    pub(crate) poisson: Option<u64>,
    /// Seconds to wait for answers after the last request
    #[arg(long, default_value_t = 60.0)]
    pub(crate) drain_s: f64,
}

/// What is sent, where, for how long.
#[derive(Debug, Args)]
pub(crate) struct What {
    /// The gateway or server, http://HOST:PORT
    #[arg(long)]
    pub(crate) url: String,
    /// Seconds of measurement
    #[arg(long, default_value_t = 5.0)]
    pub(crate) duration_s: f64,
    /// Seconds before it that do not count
    #[arg(long, default_value_t = 0.5)]
    pub(crate) warm_up_s: f64,
    /// Tokens to ask for; of a list, each request takes one at random
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    pub(crate) max_tokens: Vec<u32>,
    /// Stream the answers
    #[arg(long)]
    pub(crate) stream: bool,
    /// Ask for usage at the end of streams
    #[arg(long)]
    pub(crate) usage: bool,
    /// /v1/completions instead of /v1/chat/completions
    #[arg(long)]
    pub(crate) completions: bool,
    /// Words of a prompt
    #[arg(long, default_value_t = 32)]
    pub(crate) prompt_words: usize,
    /// Name of the model
    #[arg(long, default_value = "mock")]
    pub(crate) model: String,
    /// Key, sent as `Authorization: Bearer KEY`
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// A further header, NAME: VALUE; repeatable
    #[arg(long = "header")]
    pub(crate) headers: Vec<String>,
    /// Name each request TAG-NUMBER in the body's `user`
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// Report CPU time and memory of this process; repeatable
    #[arg(long = "pid")]
    pub(crate) pids: Vec<u32>,
    /// Longest wait for an answer
    #[arg(long, default_value_t = 120.0)]
    pub(crate) timeout_s: f64,
    /// Do not check that answers are as long as asked for (the server is not gwmock)
    #[arg(long)]
    pub(crate) unchecked: bool,
}

/// Makes the requests of a run.
#[derive(Debug)]
pub(crate) struct Requests {
    head: String,
    prompts: Vec<(String, String)>,
    lengths: Vec<u32>,
    tag: Option<String>,
    next: AtomicU64,
    pub(crate) address: String,
}

impl Requests {
    pub(crate) fn new(what: &What) -> Result<Self> {
        let address = what.url.strip_prefix("http://").context("the URL must start with http://")?;
        let address = address.split('/').next().unwrap_or_default().to_owned();
        let path = if what.completions { "/v1/completions" } else { "/v1/chat/completions" };
        let mut head =
            format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n");
        if let Some(key) = &what.key {
            head.push_str(&format!("authorization: Bearer {key}\r\n"));
        }
        for header in &what.headers {
            head.push_str(&format!("{header}\r\n"));
        }
        let prompts = (0..PROMPTS).map(|seed| parts(what, seed)).collect::<Result<_>>()?;
        let (lengths, tag) = (what.max_tokens.clone(), what.tag.clone());
        Ok(Self { head, prompts, lengths, tag, next: AtomicU64::new(0), address })
    }

    /// The bytes of the next request, and the tokens that it asks for.
    pub(crate) fn next(&self) -> (Vec<u8>, u32) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let length = self.lengths[(mixed(number) % self.lengths.len() as u64) as usize];
        let (before, after) = &self.prompts[(number % PROMPTS) as usize];
        let user = self.tag.as_ref().map(|tag| format!(",\"user\":\"{tag}-{number}\"")).unwrap_or_default();
        let body = format!("{before}{length}{user}{after}");
        (format!("{}content-length: {}\r\n\r\n{body}", self.head, body.len()).into_bytes(), length)
    }
}

/// A number that looks drawn at random from another (splitmix64).
pub(crate) fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A body in two parts, between which the tokens to ask for go.
fn parts(what: &What, seed: u64) -> Result<(String, String)> {
    let words = (0..what.prompt_words as u64).map(|word| WORDS[(mixed(seed << 32 | word) % 16) as usize]);
    let prompt = words.collect::<Vec<_>>().join(" ");
    let mut body = json!({"model": what.model, "stream": what.stream});
    if what.usage {
        body["stream_options"] = json!({"include_usage": true});
    }
    if what.completions {
        body["prompt"] = json!(prompt);
    } else {
        body["messages"] = json!([{"role": "user", "content": prompt}]);
    }
    let text = body.to_string();
    let open = text.strip_suffix('}').context("a body is an object")?;
    Ok((format!("{open},\"max_tokens\":"), "}".to_owned()))
}
