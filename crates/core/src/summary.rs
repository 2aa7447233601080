//! The five numbers by which every latency is reported.

use serde::{Deserialize, Serialize};

/// Mean and quantiles of a set of observations, in their own unit.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest observation.
    pub max: f64,
}

impl Summary {
    /// Summary of `values` in any order, or `None` if there are none. Quantiles interpolate linearly between
    /// order statistics (the default of NumPy, type 7 of Hyndman and Fan).
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let max = *values.last()?;
        let quantile = |q: f64| {
            let at = q * (values.len() - 1) as f64;
            let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
            low + (high - low) * at.fract()
        };
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { mean, p50: quantile(0.5), p90: quantile(0.9), p99: quantile(0.99), max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_agree_with_numpy() {
        // numpy.percentile([1, 2, 3, 4, 10], [50, 90, 99]) = 3.0, 7.6, 9.76
        let s = Summary::of(vec![10.0, 3.0, 1.0, 4.0, 2.0]).unwrap();
        assert_eq!((s.mean, s.p50, s.max), (4.0, 3.0, 10.0));
        assert!((s.p90 - 7.6).abs() < 1e-12 && (s.p99 - 9.76).abs() < 1e-12);
        assert_eq!(Summary::of(vec![]), None);
    }
}
