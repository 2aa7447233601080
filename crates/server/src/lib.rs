//! The OpenAI-compatible HTTP server of outrank.
//!
//! A request is read and checked (`wire`), scored within a few milliseconds or not at all (`scorer`), accepted into
//! the scheduler's queue by a [`Backend`] (`accept`), and answered whole or as a stream (`generate`, `sse`). From
//! acceptance to the last byte it is one value, a `Flight`: dropping it, for whatever reason, cancels what still
//! runs and closes the books.

mod accept;
mod adaptive;
mod app;
mod backend;
mod body;
mod config;
mod embedded;
mod error;
mod flight;
mod generate;
mod identity;
mod metrics;
mod records;
mod routes;
mod scorer;
mod server;
mod sse;
mod wire;

pub use adaptive::AdaptiveRanker;
pub use backend::{Backend, Generation, PromptError};
pub use config::ServerConfig;
pub use embedded::EmbeddedEngine;
pub use scorer::{Answer, Learned, Predictor, ranker_scores};
pub use server::{Drained, Server, ServerError};
