//! Mean and percentiles of samples.

use serde::Serialize;

/// Of a list of samples, in their unit.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Half are at most this.
    pub p50: f64,
    /// Nine in ten are at most this.
    pub p90: f64,
    /// All but one in a hundred are at most this.
    pub p99: f64,
    /// All but one in a thousand are at most this.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of samples in microseconds, given in milliseconds. Nothing if there are none.
    #[must_use]
    pub fn of_us(samples: &mut [u32]) -> Option<Self> {
        samples.sort_unstable();
        let last = *samples.last()?;
        let mean = samples.iter().map(|&sample| f64::from(sample)).sum::<f64>() / samples.len() as f64;
        // Nearest rank: the smallest sample that enough of them do not exceed.
        let at = |share: f64| {
            let rank = (share * samples.len() as f64).ceil() as usize;
            f64::from(samples[rank.clamp(1, samples.len()) - 1]) / 1e3
        };
        Some(Self {
            count: samples.len(),
            mean: mean / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: f64::from(last) / 1e3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;

    #[test]
    fn percentiles_are_samples_at_their_rank() {
        let mut samples: Vec<u32> = (1..=1000).rev().map(|ms| ms * 1000).collect();
        let summary = Summary::of_us(&mut samples).unwrap();
        assert_eq!((summary.p50, summary.p99, summary.p999, summary.max), (500.0, 990.0, 999.0, 1000.0));
        assert_eq!(summary.mean, 500.5);
        assert!(Summary::of_us(&mut []).is_none());
    }
}
