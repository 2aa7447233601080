//! A million requests through the simulator on one core: time, memory, and cost of a step against queue length.
//! `cargo bench -p outrank-sim --bench million [-- REQUESTS]`
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::time::Instant;

use outrank_core::policies::{PolicySettings, by_name};
use outrank_core::{MonitorSettings, Score};
use outrank_sim::{Job, Profile, Scoring, Simulation};

/// Requests a second that keep 256 seats of the profile nearly full.
const RATE: f64 = 33.0;

/// A fixed scatter of uniform numbers in (0, 1).
struct Scatter(u64);

impl Scatter {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// Poisson arrivals of log-normal lengths, predicted with an error of the same kind; `gap_s` 0 is a burst.
fn jobs(count: usize, gap_s: f64) -> impl Iterator<Item = Job> {
    let mut random = Scatter(7);
    let mut arrival_s = 0.0;
    (0..count).map(move |_| {
        arrival_s -= random.uniform().ln() * gap_s;
        let output_tokens = (230.0 * (0.9 * random.normal()).exp()).clamp(2.0, 2000.0) as u32;
        let predicted = f64::from(output_tokens) * (0.8 * random.normal()).exp();
        Job {
            arrival_s,
            prompt_tokens: (120.0 * random.normal().exp()).clamp(8.0, 2000.0) as u32,
            output_tokens,
            max_tokens: None,
            score: Score::new(predicted as f32, 0.8).ok(),
        }
    })
}

/// Resident memory of this process in MiB, by its own account.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or("0 0");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

fn run(policy: &str, jobs: impl Iterator<Item = Job>, report_every: usize) {
    let profile = Profile::load("h200-llama3-8b").unwrap();
    let policy_box = by_name(policy, &PolicySettings::default()).unwrap();
    let simulation =
        Simulation::new(&profile, policy_box, Scoring::default(), MonitorSettings::default()).unwrap();
    let (start, mut done, mut memory) = (Instant::now(), 0usize, Vec::new());
    let totals = simulation
        .run(jobs, |_| {
            done += 1;
            if done.is_multiple_of(report_every) {
                memory.push(resident_mib());
            }
        })
        .unwrap();
    let took_s = start.elapsed().as_secs_f64();
    let steps = totals.counters.steps;
    println!(
        "{policy:8} {done:8} requests {steps:8} steps {took_s:7.2} s {:6.1} us/step {:5.0} ns/token, memory {} MiB",
        took_s * 1e6 / steps as f64,
        took_s * 1e9 / totals.output_tokens as f64,
        memory.iter().map(|mib| format!("{mib:.0}")).collect::<Vec<_>>().join(" ")
    );
}

fn main() {
    let count = std::env::args().skip(1).find_map(|text| text.parse().ok()).unwrap_or(1_000_000usize);
    for policy in ["fcfs", "outrank", "ltr"] {
        run(policy, jobs(count, 1.0 / RATE), count.div_ceil(5));
    }
    println!("a burst: cost of a step against queue length");
    for waiting in [1_000, 10_000, 100_000] {
        for policy in ["fcfs", "outrank"] {
            run(policy, jobs(waiting, 0.0), waiting);
        }
    }
}
