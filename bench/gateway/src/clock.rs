//! One clock for all processes of a machine.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since 1970. The mock stamps tokens with it, the client compares.
#[must_use]
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
