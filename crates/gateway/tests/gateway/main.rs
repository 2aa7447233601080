//! The gateway's behaviour over real connections, in front of upstreams that do as they are told.

#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests do.

mod faults;
mod hold;
mod learning;
mod life;
mod mock;
mod replicas;
mod stamp;
mod support;
mod tenants;
mod traces;
