//! Placeholder until the executor is measured.
fn main() {}
