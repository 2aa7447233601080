//! What the HTTP hosts of outrank share: errors as the OpenAI API words them, who asks, bodies within limits, scoring and learning
//! off the token path, and the vocabulary of the metrics.

mod adaptive;
mod body;
mod error;
mod identity;
mod metrics;
mod scorer;

pub use adaptive::AdaptiveRanker;
pub use body::read_json_body;
pub use error::{ApiError, ErrorCode, json_response};
pub use identity::{KeyDigest, Keys, REQUEST_ID, WrongKey, random_id, sane_request_id};
pub use metrics::{LatencyHistogram, LocalLatency, METRICS_CONTENT_TYPE, ScorerMetrics, latency};
pub use scorer::{Answer, Learned, PendingScore, Predictor, Scorer, ranker_scores};
