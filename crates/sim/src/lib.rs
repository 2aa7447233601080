//! A simulator of LLM serving: the production [`outrank_core::Scheduler`] under a virtual clock.
//!
//! [`Simulation`] drives the scheduler exactly as the embedded engine does: submit, plan, execute, observe. Only the
//! execution is simulated: a step takes as long as the [`StepCost`] of a [`Profile`] says, which is fitted from the
//! measured steps of a real engine ([`fit()`]). This crate reads no clock and draws no random number, so a run is a
//! function of its inputs, to the byte.

mod cost;
mod fit;
mod metrics;
mod profile;
mod scorer;
mod simulation;

pub use cost::{Composition, Knot, StepCost};
pub use fit::{Fit, FitError, Residuals, fit};
pub use metrics::{Answer, Group, Metrics, Slo, by_length};
pub use profile::{Profile, ProfileError};
pub use scorer::Scoring;
pub use simulation::{
    Job, MAX_TRUST_CHANGES, SimError, Simulation, TimelinePoint, Totals, TrustChange, Watch,
};
