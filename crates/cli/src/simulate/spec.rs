//! A policy with its settings, as the command line names it: `outrank:steepness=3:patience_s=60`.

use std::fmt;
use std::str::FromStr;

use outrank_core::Policy;
use outrank_core::policies::{NAMES, PolicySettings, by_name};

/// A policy and its settings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PolicySpec {
    name: String,
    text: String,
    settings: PolicySettings,
}

impl PolicySpec {
    /// The policy.
    pub(crate) fn policy(&self) -> Box<dyn Policy> {
        // The name was checked when it was read.
        by_name(&self.name, &self.settings).unwrap_or_else(|| Box::new(outrank_core::policies::Fcfs))
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for PolicySpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        if !NAMES.contains(&name) {
            return Err(format!("no policy is called {name:?}; choose from {}", NAMES.join(", ")));
        }
        let mut lines = String::new();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?}: expected a setting such as steepness=3"))?;
            let quoted = value.parse::<f64>().is_err() && value != "true" && value != "false";
            lines.push_str(&if quoted {
                format!("{key} = {value:?}\n")
            } else {
                format!("{key} = {value}\n")
            });
        }
        let settings = if lines.is_empty() {
            PolicySettings::default()
        } else {
            toml::from_str(&format!("[{name}]\n{lines}"))
                .map_err(|error| format!("{text}: {}", error.message()))?
        };
        Ok(Self { name: name.into(), text: text.into(), settings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_unknown_ones_are_errors() {
        let spec: PolicySpec = "outrank:steepness=3:patience_s=60.5".parse().unwrap();
        assert_eq!((spec.settings.outrank.steepness, spec.settings.outrank.patience_s), (3.0, 60.5));
        assert_eq!(
            (spec.to_string().as_str(), spec.policy().name()),
            ("outrank:steepness=3:patience_s=60.5", "outrank")
        );
        for bad in
            ["lottery", "outrank:steepnes=3", "outrank:steepness", "fcfs:x=1", "outrank:steepness=much"]
        {
            assert!(bad.parse::<PolicySpec>().is_err(), "{bad}");
        }
    }
}
