//! What the HTTP hosts of outrank share: the port and the end of a host, errors as the OpenAI API words them, who asks, bodies within
//! limits, scoring and learning off the token path, records of requests, how far predictions are to be trusted, what the policy
//! saves, the vocabulary of the metrics, and traces.

mod adaptive;
mod body;
mod budget;
mod error;
mod host_metrics;
mod identity;
mod lessons;
mod listen;
mod metrics;
mod records;
mod report;
mod request_metrics;
mod scorer;
mod shadow;
mod spots;
mod traces;
mod trust;

pub use adaptive::AdaptiveRanker;
pub use body::read_json_body;
pub use error::{ApiError, ErrorCode, json_response};
pub use host_metrics::HostMetrics;
pub use identity::{KeyDigest, Keys, REQUEST_ID, WrongKey, random_id, sane_request_id};
pub use listen::{BindError, Drained, listen_on};
pub use metrics::{LatencyHistogram, LocalLatency, METRICS_CONTENT_TYPE, ScorerMetrics, Unscored};
pub use outrank_ranker::adapt::Open;
pub use records::{Arriving, OpenRecord, Recorded, Records};
pub use report::{PredictedTokens, milliseconds};
pub use request_metrics::{Outcome, RequestMetrics};
pub use scorer::{Answer, Census, Learned, PendingScore, Predictor, Scorer, ScorerLimits, ranker_scores};
pub use shadow::{Replay, ReplayError, Served, Shadow};
pub use traces::{RequestSpan, Traces, TracesError};
pub use trust::TrustMetrics;
