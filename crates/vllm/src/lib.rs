//! outrank inside vLLM.
//!
//! [`Host`] is everything that is no Python: settings, order of requests ([`outrank_core::OrderBook`]), scoring and
//! learning on threads of their own. With the feature `python` the crate is the module `outrank_vllm._core`, which
//! the Python package beside it wraps as a scheduler class of vLLM.

mod host;
#[cfg(feature = "python")]
mod python;
mod settings;
mod worker;

pub use host::{Arrival, Host, HostError, Status};
pub use settings::{RankerChoice, Settings, SettingsError};
