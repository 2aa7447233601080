//! The gateway of outrank: learned-rank scheduling in front of any OpenAI-compatible fleet.
//!
//! ```text
//!  client ─► listen ─► routes ─► forward: read the body once, who asks, class, limits
//!                                  │ Ask                    ▲ Turn (upstream, stamp)
//!                                  ▼                        │
//!            scorer ─ Score ─►   desk: one lock; OrderBook of the core (order, tenants, monitor),
//!                                  │    window, breaker and work of each upstream
//!                                  ▼
//!                                attempt: kept connections; again elsewhere until the first byte has come
//!                                  │
//!  client ◄──────────────────────relay: the bytes as they came, read along (tokens, usage, end)
//!                                  └─► flight: the books: window, order, metrics, learning, journal
//! ```
//!
//! * **Bytes, not objects.** A request body is parsed once, for what ordering needs, and forwarded untouched (in stamp mode with one
//!   field more). An answer is never parsed as a whole: the relay looks for a few keys in each line.
//! * **Who goes next** is the core's `OrderBook`, the same code as in the vLLM plug-in. A request that finds a seat free goes at
//!   once and is scored beside it; only one that will be stamped waits for its score, a few milliseconds at most.
//! * **Ownership.** `Flight` owns all that a request holds: its `Place` at the desk, its connection (`Lease`), its record and its
//!   count in the tenant's limits. It moves from `forward` into the response body, so it is dropped, and everything freed, wherever
//!   the client leaves.
//! * **Nothing doubled.** A request may be sent again as long as no byte of an answer has come; the relay begins with the first byte.
//! * **Reloads** replace whole values behind locks; requests under way keep those that they began with.

mod app;
mod call;
mod check;
mod clock;
mod config;
mod describe;
mod desk;
mod flight;
mod forward;
mod gateway;
mod headers;
mod journal;
mod listen;
mod metrics;
mod records;
mod relay;
mod routes;
mod scan;
mod stamp;
mod tenants;
mod tls;
mod trace_context;
mod unbroken;
mod upstream;

pub use check::{Reached, check};
pub use config::{Affinity, ConfigError, GatewayConfig, JournalConfig, Mode, Stamp, TlsConfig, WindowConfig};
pub use gateway::{Gateway, GatewayError, Handle};
pub use outrank_http::{BindError, Drained};
pub use tenants::{Class, TenantConfig};
pub use upstream::UpstreamConfig;
