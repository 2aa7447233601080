//! Makes the shipped ranker again: `cargo run --release -p outrank-ranker --example ship -- OUT DIR...`
//!
//! OUT is where to write it (`crates/ranker/assets/default.outrank`), each DIR a folder with traces.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::error::Error;
use std::path::{Path, PathBuf};

use outrank_ranker::shipped::train_shipped;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let out = arguments.next().ok_or("usage: ship OUT DIR...")?;
    let folders: Vec<PathBuf> = arguments.collect();
    let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
    let (ranker, report) = train_shipped(&folders, &mut |step| {
        println!("{} {}/{} {:?}", step.stage, step.done, step.of, step.tau_b);
    })?;
    ranker.save(&out)?;
    let tau_b = report.validation_tau_b;
    println!(
        "{}: {} rows of {} models, validation tau-b {tau_b:.3}",
        out.display(),
        report.learned_rows,
        report.groups
    );
    Ok(())
}
