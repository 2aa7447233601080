//! The policies, one small file each: its formula, what it optimises and what it hurts.

mod fcfs;
mod ltr;
mod oracle;
mod outrank;

use serde::{Deserialize, Serialize};

pub use fcfs::Fcfs;
pub use ltr::Ltr;
pub use oracle::{OracleSjf, OracleSrtf};
pub use outrank::Outrank;

use crate::Policy;

/// Settings of all policies; each reads its own.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySettings {
    /// Settings of `outrank`.
    pub outrank: Outrank,
    /// Settings of `ltr`.
    pub ltr: Ltr,
}

/// Names that [`by_name`] knows, the default first.
pub const NAMES: [&str; 5] = ["outrank", "fcfs", "ltr", "oracle-sjf", "oracle-srtf"];

/// The policy called `name`, or `None` if there is none of that name.
pub fn by_name(name: &str, settings: &PolicySettings) -> Option<Box<dyn Policy>> {
    Some(match name {
        "outrank" => Box::new(settings.outrank),
        "fcfs" => Box::new(Fcfs),
        "ltr" => Box::new(settings.ltr),
        "oracle-sjf" => Box::new(OracleSjf),
        "oracle-srtf" => Box::new(OracleSrtf),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_gives_the_policy_of_that_name() {
        for name in NAMES {
            assert_eq!(by_name(name, &PolicySettings::default()).unwrap().name(), name);
        }
        assert!(by_name("Outrank", &PolicySettings::default()).is_none(), "names are exact");
    }
}
