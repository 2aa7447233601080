//! The scheduler of outrank: which request runs next, and why.
//!
//! A host (the embedded engine, a simulator, a gateway, a vLLM plug-in) owns one [`Scheduler`] and drives it
//! in a loop: [`Scheduler::submit`] new requests, ask for a [`Plan`] with [`Scheduler::plan`], execute it, and
//! report what happened with [`Scheduler::observe`]. Every call takes the time as an argument: this crate never
//! reads a clock, draws a random number, performs IO or logs, so a run is a pure function of its inputs.

mod capacity;
mod entry;
mod event;
mod explain;
mod gather;
mod gittins;
mod kv;
mod lanes;
mod monitor;
mod order_book;
mod overtake;
mod plan;
pub mod policies;
mod policy;
mod queue;
mod request;
mod scheduler;
mod score;
mod service;
mod starvation;
mod step;
mod summary;
mod time;
mod work_mix;

pub use capacity::{BLOCK_TOKENS, Capacity, CapacityError};
pub use event::Event;
pub use explain::{Eta, Explanation, Placement, State};
pub use kv::{KvLedger, blocks_for};
pub use lanes::Lanes;
pub use monitor::{MonitorSettings, RankMonitor, Trust};
pub use order_book::{End, OrderBook, UnsuitedPolicy};
pub use overtake::OvertakeLog;
pub use plan::{Pause, Plan, Seated, Slice, SwitchMethod};
pub use policy::{Hysteresis, Key, LOAD_STEP, Load, Policy, Preemption, RequestView, Unscored};
pub use queue::{Place, Rank, RankQueue};
pub use request::{Request, RequestId};
pub use scheduler::{Counters, Rejection, Scheduler, SchedulerConfig};
pub use score::{Score, ScoreError};
pub use service::{ServiceModel, SwitchCost};
pub use starvation::Starvation;
pub use step::StepSample;
pub use summary::Summary;
pub use time::Timestamp;
