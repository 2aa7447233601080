//! Which requests bring how much of the work.

/// Bins per doubling of the worth: 15 % wide.
const BINS_PER_OCTAVE: f64 = 5.0;
/// Bins in all: worths from 2^-16 to 2^24 tokens; beyond, the outermost bin.
const BINS: usize = 200;
/// The first bin starts at 2^-16.
const FIRST_OCTAVE: f64 = -16.0;
/// What each newer request leaves of the weight of the older ones: a mean over about the last 2,000.
const DECAY: f64 = 1.0 - 1.0 / 2000.0;

/// Recent work by the worth of the requests that brought it, both in output tokens: a histogram with bins of equal ratio in
/// which requests fade as newer ones come. Counting in tokens rather than seconds, it stays true while the host's speed is
/// still being learned.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct WorkMix {
    work: [f64; BINS],
}

impl Default for WorkMix {
    fn default() -> Self {
        Self { work: [0.0; BINS] }
    }
}

impl WorkMix {
    /// A request of this worth brings this work.
    pub(crate) fn add(&mut self, worth: f64, work: f64) {
        for bin in &mut self.work {
            *bin *= DECAY;
        }
        let at = (worth.max(f64::MIN_POSITIVE).log2() - FIRST_OCTAVE) * BINS_PER_OCTAVE;
        self.work[at.clamp(0.0, (BINS - 1) as f64) as usize] += work;
    }

    /// The worth below which this share (0 to 1) of the work lies; `None` before any came.
    pub(crate) fn below(&self, share: f64) -> Option<f64> {
        let total: f64 = self.work.iter().sum();
        if total <= 0.0 {
            return None;
        }
        let mut left = share * total;
        for (at, &work) in self.work.iter().enumerate() {
            if work > 0.0 && left <= work {
                let bins = at as f64 + left / work;
                return Some((bins / BINS_PER_OCTAVE + FIRST_OCTAVE).exp2());
            }
            left -= work;
        }
        // Rounding may leave a crumb of the whole.
        Some((BINS as f64 / BINS_PER_OCTAVE + FIRST_OCTAVE).exp2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_has_that_share_of_the_work_below_it() {
        let mut mix = WorkMix::default();
        assert_eq!(mix.below(0.5), None);
        // 100 requests of 10 tokens bring as much as one of 1,000.
        for _ in 0..10 {
            (0..100).for_each(|_| mix.add(10.0, 10.0));
            mix.add(1000.0, 1000.0);
        }
        let bin = (1.0 / BINS_PER_OCTAVE).exp2();
        for (share, worth) in [(0.1, 10.0), (0.45, 10.0), (0.55, 1000.0), (0.9, 1000.0)] {
            let below = mix.below(share).unwrap();
            assert!((worth / bin..worth * bin).contains(&below), "{share}: {below}");
        }
    }

    #[test]
    fn old_requests_fade() {
        let mut mix = WorkMix::default();
        (0..20_000).for_each(|_| mix.add(1000.0, 1000.0));
        (0..20_000).for_each(|_| mix.add(10.0, 10.0));
        assert!(mix.below(0.5).unwrap() < 20.0);
    }

    #[test]
    fn worths_beyond_the_bins_count_as_the_outermost() {
        let mut mix = WorkMix::default();
        for worth in [0.0, f64::MIN_POSITIVE, f64::MAX, f64::INFINITY] {
            mix.add(worth, 1.0);
        }
        for share in [0.0, 0.3, 1.0] {
            assert!(mix.below(share).unwrap().is_finite());
        }
    }
}
