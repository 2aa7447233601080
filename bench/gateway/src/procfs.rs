//! What a process uses, from /proc.

use std::fs;

use serde::Serialize;

/// Clock ticks a second, in which Linux reports CPU time to all programs.
const TICKS_PER_S: f64 = 100.0;

/// What a process uses now.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Usage {
    /// CPU time since its start, user and system, of all its threads.
    pub cpu_s: f64,
    /// Resident memory.
    pub rss_kib: u64,
    /// Open file descriptors.
    pub open_files: usize,
}

/// Usage of a process; nothing if it is not there.
#[must_use]
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold blanks.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let rss_kib = rss.split_whitespace().next()?.parse().ok()?;
    let open_files = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    Some(Usage { cpu_s: (ticks(11)? + ticks(12)?) / TICKS_PER_S, rss_kib, open_files })
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_memory_and_files_and_no_other_is_process_zero() {
        let usage = super::usage(std::process::id()).unwrap();
        assert!(usage.rss_kib > 100 && usage.open_files > 0 && usage.cpu_s >= 0.0);
        assert!(super::usage(0).is_none());
    }
}
