//! The OpenAI-compatible HTTP server of outrank.
//!
//! A request is read and checked (`wire`), scored within a few milliseconds or not at all ([`outrank_http`]), accepted into
//! the scheduler's queue by a [`Backend`] (`accept`), and answered whole or as a stream (`generate`, `sse`). From
//! acceptance to the last byte it is one value, a `Flight`: dropping it, for whatever reason, cancels what still
//! runs and closes the books.

mod accept;
mod app;
mod backend;
mod config;
mod embedded;
mod flight;
mod generate;
mod identity;
mod metrics;
mod records;
mod routes;
mod server;
mod sse;
mod wire;

pub use backend::{Backend, Generation, PromptError};
pub use config::ServerConfig;
pub use embedded::EmbeddedEngine;
pub use outrank_http::{
    AdaptiveRanker, Answer, BindError, Drained, Learned, Open, Predictor, Replay, ranker_scores,
};
pub use server::{Server, ServerError};
