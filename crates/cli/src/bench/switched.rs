//! Several policies on one engine, one of them in force.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrank_core::{Key, Load, Policy, Preemption, RequestView, Starvation};

/// Hands every question to the policy in force. It may change only while the engine is idle: keys of different policies do
/// not compare.
#[derive(Debug)]
pub(crate) struct Switched {
    policies: Vec<Box<dyn Policy>>,
    in_force: Arc<AtomicUsize>,
}

/// Puts one of the policies of a [`Switched`] in force.
#[derive(Debug, Clone)]
pub(crate) struct Switch(Arc<AtomicUsize>);

impl Switch {
    /// Puts the policy at this place in force; beyond the last, the last.
    pub(crate) fn to(&self, policy: usize) {
        self.0.store(policy, Ordering::Release);
    }
}

impl Switched {
    /// The first of the policies is in force until the switch says otherwise. `None` without a policy.
    pub(crate) fn new(policies: Vec<Box<dyn Policy>>) -> Option<(Self, Switch)> {
        if policies.is_empty() {
            return None;
        }
        let in_force = Arc::new(AtomicUsize::new(0));
        Some((Self { policies, in_force: Arc::clone(&in_force) }, Switch(in_force)))
    }

    fn policy(&self) -> &dyn Policy {
        &*self.policies[self.in_force.load(Ordering::Acquire).min(self.policies.len() - 1)]
    }
}

impl Policy for Switched {
    fn name(&self) -> &'static str {
        self.policy().name()
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        self.policy().key(view)
    }

    fn rekey_interval_s(&self) -> Option<f64> {
        self.policy().rekey_interval_s()
    }

    fn preemption(&self, load: Load) -> Preemption {
        self.policy().preemption(load)
    }

    fn starvation(&self) -> Option<Starvation> {
        self.policy().starvation()
    }

    fn follows_load(&self) -> bool {
        self.policy().follows_load()
    }

    fn short_share(&self) -> f64 {
        self.policy().short_share()
    }

    fn falls_back(&self) -> bool {
        self.policy().falls_back()
    }

    fn why(&self, view: &RequestView<'_>) -> String {
        self.policy().why(view)
    }
}

#[cfg(test)]
mod tests {
    use outrank_core::policies::{self, PolicySettings};

    use super::*;

    #[test]
    fn the_policy_in_force_answers() {
        let named = |name: &str| policies::by_name(name, &PolicySettings::default()).unwrap();
        let (switched, switch) = Switched::new(vec![named("fcfs"), named("outrank")]).unwrap();
        assert_eq!((switched.name(), switched.follows_load(), switched.falls_back()), ("fcfs", false, false));
        switch.to(1);
        assert_eq!(
            (switched.name(), switched.follows_load(), switched.falls_back()),
            ("outrank", true, true)
        );
        let load = Load { backlog_s: 1.0, mean_service_s: 1.0, short_s: 1.0 };
        assert!(matches!(switched.preemption(load), Preemption::Limited(_)));
        assert!(Switched::new(Vec::new()).is_none());
    }
}
