//! outrank inside vLLM.
//!
//! [`Host`] is everything that is no Python: settings, order of requests ([`outrank_core::OrderBook`]), scoring and
//! learning on threads of their own. With the feature `python` the crate is the module `outrank_vllm._core`, which
//! the Python package beside it wraps as a scheduler class of vLLM.

mod host;
mod metrics;
mod prompts;
#[cfg(feature = "python")]
mod python;
mod registry;
mod settings;
mod worker;

pub use host::{Arrival, Host, HostError, Status};
pub use metrics::{Figure, Kind, Publisher};
pub use prompts::{Prompt, Prompts};
pub use registry::Registry;
pub use settings::{RankerChoice, Settings, SettingsError};
