//! The server's behaviour over real connections, with a scripted engine behind the real scheduler.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests do.

mod answers;
#[path = "../client/mod.rs"]
mod client;
mod document;
mod drain;
mod inspect;
mod queue;
mod refusals;
mod scoring;
mod scripted;
mod support;
mod trust;
