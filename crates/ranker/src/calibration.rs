//! From a raw score to tokens: a monotone curve and how far the truth strays from it.
//!
//! The median of ln(tokens) given the raw score is fitted by isotonic regression (pool adjacent violators;
//! Barlow et al., "Statistical Inference under Order Restrictions", 1972) on scores of requests that
//! the scoring model did not learn from, summed up in at most [`MAX_KNOTS`] knots and blended with the
//! straight line of least squares, so that the curve rises strictly and keeps every order of scores.
//!
//! How far the truth strays is measured on requests that the curve was not fitted to either (cross-fitting: as many curves as
//! `PARTS`, each without one part), and the share of an interval is taken of one request more than there were, as in conformal
//! prediction (Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 2018): with few requests a
//! curve comes closer to them than to those to come.

use outrank_core::Score;
use serde::{Deserialize, Serialize};

/// Most knots of a curve.
pub const MAX_KNOTS: usize = 24;

/// Fewest requests that one knot sums up.
const MIN_PER_KNOT: usize = 12;

/// Parts of the requests, each of which is left out of a curve to see how far it strays from it.
const PARTS: usize = 5;

/// Share of the straight line in the curve.
const LINE_SHARE: f64 = 0.15;

/// Requests that the overall spread is worth against a knot's own.
const SPREAD_PRIOR: f64 = 30.0;

/// Share of answers within the interval that [`Score::interval`] gives.
const CENTRAL_SHARE: f64 = 0.8;

/// Standard deviations of a normal law that the central 80 % reach to either side.
const CENTRAL_DEVIATIONS: f64 = 1.281_551_565_544_6;

/// Bounds of the spread: the standard deviation of ln(tokens).
const SPREAD_BOUNDS: (f64, f64) = (0.05, 3.0);

/// The longest length that is ever predicted, in tokens; the shortest is one.
const MAX_TOKENS: f64 = 1e6;

/// A strictly rising, piecewise linear curve from raw score to ln(tokens), with a spread at each knot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    raw: Vec<f32>,
    ln_tokens: Vec<f32>,
    spread: Vec<f32>,
    /// How far the central 80 % reach to either side, in ln(tokens).
    reach: Vec<f32>,
    /// Rise of ln(tokens) per unit of raw score beyond the ends.
    slope: f32,
}

impl Calibration {
    /// Fits the curve to raw scores and the ln(tokens) that came of them.
    ///
    /// `None` where fewer than two requests are given, or a value is not finite.
    ///
    /// # Panics
    /// Where the slices differ in length.
    pub fn fit(raw: &[f64], ln_tokens: &[f64]) -> Option<Self> {
        assert_eq!(raw.len(), ln_tokens.len(), "one length a score");
        if raw.len() < 2 || raw.iter().chain(ln_tokens).any(|value| !value.is_finite()) {
            return None;
        }
        let mut points: Vec<(f64, f64)> = raw.iter().copied().zip(ln_tokens.iter().copied()).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let strayed: Vec<f64> = strayed(&points);
        let overall = Scatter::of(&strayed);
        let (line, size) = (Line::fit(&points), knot_size(points.len()));
        let slope = line.slope as f32;
        let mut curve = Self { raw: vec![], ln_tokens: vec![], spread: vec![], reach: vec![], slope };
        for ((x, y), own) in knots(&points, &line).zip(strayed.chunks(size)) {
            curve.push(x, y, &Scatter::of(own).beside(&overall, own.len()));
        }
        Some(curve)
    }

    /// Appends a knot where it keeps the curve strictly rising.
    fn push(&mut self, x: f64, y: f64, scatter: &Scatter) {
        let (x, y) = (x as f32, y as f32);
        let rises = self.raw.last().is_none_or(|&last| x > last)
            && self.ln_tokens.last().is_none_or(|&last| y > last);
        if rises {
            self.raw.push(x);
            self.ln_tokens.push(y);
            self.spread.push(scatter.spread.clamp(SPREAD_BOUNDS.0, SPREAD_BOUNDS.1) as f32);
            self.reach.push(scatter.reach.clamp(SPREAD_BOUNDS.0, SPREAD_BOUNDS.1) as f32);
        }
    }

    /// Stretches the curve's ln(tokens) to `center + scale * value` and widens the spread by the variance
    /// `extra`: from standardised lengths to tokens.
    pub(crate) fn scaled(mut self, center: f64, scale: f64, extra: f64) -> Self {
        for value in &mut self.ln_tokens {
            *value = (center + scale * f64::from(*value)) as f32;
        }
        let widen = |values: &mut Vec<f32>, extra: f64| {
            for value in values {
                let wide = ((scale * f64::from(*value)).powi(2) + extra).sqrt();
                *value = wide.clamp(SPREAD_BOUNDS.0, SPREAD_BOUNDS.1) as f32;
            }
        };
        widen(&mut self.spread, extra);
        widen(&mut self.reach, CENTRAL_DEVIATIONS * CENTRAL_DEVIATIONS * extra);
        self.slope *= scale as f32;
        self
    }

    /// True where a file's curve can be used: knots in order, numbers finite.
    pub(crate) fn is_sound(&self) -> bool {
        let rising = |values: &[f32]| values.windows(2).all(|pair| pair[0] < pair[1]);
        let all = self.raw.iter().chain(&self.ln_tokens).chain(&self.spread).chain(&self.reach);
        !self.raw.is_empty()
            && self.raw.len() == self.ln_tokens.len()
            && self.raw.len() == self.spread.len()
            && self.raw.len() == self.reach.len()
            && all.chain([&self.slope]).all(|value| value.is_finite())
            && rising(&self.raw)
            && self.slope > 0.0
            && self.spread.iter().chain(&self.reach).all(|&width| width >= 0.0)
    }

    /// The predicted ln(tokens) for a raw score, its spread, and how far the central 80 % reach to either side.
    pub fn predict(&self, raw: f32) -> (f32, f32, f32) {
        let last = self.raw.len() - 1;
        let above = self.raw.partition_point(|&knot| knot <= raw);
        let beyond = |end: usize| {
            let ln_tokens = self.ln_tokens[end] + self.slope * (raw - self.raw[end]);
            (ln_tokens, self.spread[end], self.reach[end])
        };
        if above == 0 {
            return beyond(0);
        }
        if above > last {
            return beyond(last);
        }
        let share = (raw - self.raw[above - 1]) / (self.raw[above] - self.raw[above - 1]);
        let between = |values: &[f32]| values[above - 1] + share * (values[above] - values[above - 1]);
        (between(&self.ln_tokens), between(&self.spread), between(&self.reach))
    }

    /// The predicted length for a raw score, from 1 to a million tokens.
    pub fn score(&self, raw: f32) -> Score {
        let (ln_tokens, spread, reach) = self.predict(if raw.is_finite() { raw } else { 0.0 });
        let median = libm::exp(f64::from(ln_tokens).clamp(0.0, libm::log(MAX_TOKENS)));
        Score::new(median as f32, spread)
            .and_then(|score| score.with_reach(reach))
            .expect("a sound curve gives a positive median and finite widths")
    }
}

/// Requests that a knot sums up.
fn knot_size(points: usize) -> usize {
    points.div_ceil(MAX_KNOTS).max(MIN_PER_KNOT.min(points))
}

/// Raw score and ln(tokens) of each knot, of points in the order of their raw scores.
fn knots<'a>(points: &'a [(f64, f64)], line: &'a Line) -> impl Iterator<Item = (f64, f64)> + 'a {
    let rising = isotonic(&points.iter().map(|point| point.1).collect::<Vec<_>>());
    let size = knot_size(points.len());
    points.chunks(size).enumerate().map(move |(index, chunk)| {
        let x = mean(chunk.iter().map(|point| point.0));
        let fits = &rising[index * size..index * size + chunk.len()];
        (x, (1.0 - LINE_SHARE) * mean(fits.iter().copied()) + LINE_SHARE * line.at(x))
    })
}

/// By how much each point lies above a curve that was fitted without it.
fn strayed(points: &[(f64, f64)]) -> Vec<f64> {
    let without = |part: usize| {
        let others = points.iter().enumerate().filter(|(index, _)| index % PARTS != part);
        let others: Vec<(f64, f64)> = others.map(|(_, &point)| point).collect();
        let line = Line::fit(&others);
        let knots: Vec<(f64, f64)> = knots(&others, &line).collect();
        (knots, line.slope)
    };
    let curves: Vec<_> = (0..PARTS).map(without).collect();
    let above = |(index, &(x, y)): (usize, &(f64, f64))| {
        let (knots, slope) = &curves[index % PARTS];
        y - between(knots, *slope, x)
    };
    points.iter().enumerate().map(above).collect()
}

/// The piecewise linear curve through knots in order, of a slope of its own beyond the ends.
fn between(knots: &[(f64, f64)], slope: f64, x: f64) -> f64 {
    let at = knots.partition_point(|knot| knot.0 <= x);
    let (Some(&low), Some(&high)) = (knots.get(at.wrapping_sub(1)), knots.get(at)) else {
        let end = knots[at.min(knots.len() - 1)];
        return end.1 + slope * (x - end.0);
    };
    low.1 + (x - low.0) / (high.0 - low.0) * (high.1 - low.1)
}

struct Line {
    slope: f64,
    mean_x: f64,
    mean_y: f64,
}

impl Line {
    /// Least squares; the slope is kept above zero, so that no order is lost.
    fn fit(points: &[(f64, f64)]) -> Self {
        let mean_x = mean(points.iter().map(|point| point.0));
        let mean_y = mean(points.iter().map(|point| point.1));
        let xx: f64 = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum();
        let xy: f64 = points.iter().map(|point| (point.0 - mean_x) * (point.1 - mean_y)).sum();
        let slope = if xx > 0.0 { (xy / xx).max(1e-3) } else { 1e-3 };
        Self { slope, mean_x, mean_y }
    }

    fn at(&self, x: f64) -> f64 {
        self.mean_y + self.slope * (x - self.mean_x)
    }
}

/// How far true lengths stray from the curve, in ln(tokens).
struct Scatter {
    /// Root mean square: it holds the answers that are far off, on which the Gittins rank lives.
    spread: f64,
    /// Half the width of the central 80 %: what an interval promises.
    reach: f64,
}

impl Scatter {
    fn of(strayed: &[f64]) -> Self {
        let mut sizes: Vec<f64> = strayed.iter().map(|by| by.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        // Among one more, that would come, this many are no larger; between two of them, in proportion.
        let rank = CENTRAL_SHARE * (sizes.len() + 1) as f64 - 1.0;
        let at =
            |rank: f64| sizes.get((rank as usize).min(sizes.len().saturating_sub(1))).copied().unwrap_or(0.0);
        let (low, high) = (at(rank), at(rank + 1.0));
        Self {
            spread: mean(sizes.iter().map(|size| size * size)).sqrt(),
            reach: low + rank.fract() * (high - low),
        }
    }

    /// Of `count` requests, beside that of all, which counts as [`SPREAD_PRIOR`] of them: mean of squares, and for the reach
    /// the geometric mean. A mean of squares would widen narrow intervals by more than it narrows wide ones.
    fn beside(&self, overall: &Self, count: usize) -> Self {
        let share = count as f64 / (count as f64 + SPREAD_PRIOR);
        let square = share * self.spread.powi(2) + (1.0 - share) * overall.spread.powi(2);
        let ln = |reach: f64| libm::log(reach.max(SPREAD_BOUNDS.0));
        let reach = libm::exp(share * ln(self.reach) + (1.0 - share) * ln(overall.reach));
        Self { spread: square.sqrt(), reach }
    }
}

/// The rising sequence nearest to `values` in squared error: pool adjacent violators.
fn isotonic(values: &[f64]) -> Vec<f64> {
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for &value in values {
        let mut block = (value, 1);
        while let Some(&(before, count)) = blocks.last() {
            if before / count as f64 <= block.0 / block.1 as f64 {
                break;
            }
            block = (block.0 + before, block.1 + count);
            blocks.pop();
        }
        blocks.push(block);
    }
    blocks.iter().flat_map(|&(sum, count)| std::iter::repeat_n(sum / count as f64, count)).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isotonic_regression_pools_what_falls() {
        assert_eq!(isotonic(&[1.0, 3.0, 2.0, 4.0]), [1.0, 2.5, 2.5, 4.0]);
        assert_eq!(isotonic(&[3.0, 2.0, 1.0]), [2.0, 2.0, 2.0]);
    }

    #[test]
    fn the_curve_rises_strictly_whatever_it_is_fitted_to() {
        for shape in [|x: f64| x.sin(), |x: f64| -x, |_: f64| 1.0, |x: f64| (x / 50.0).exp()] {
            let raw: Vec<f64> = (0..300).map(f64::from).collect();
            let truth: Vec<f64> = raw.iter().map(|&x| shape(x)).collect();
            let curve = Calibration::fit(&raw, &truth).unwrap();
            assert!(curve.is_sound(), "{curve:?}");
            let predicted: Vec<f32> = (-50..350).map(|x| curve.predict(x as f32).0).collect();
            assert!(predicted.windows(2).all(|pair| pair[0] < pair[1]), "{curve:?}");
        }
    }

    #[test]
    fn a_bent_relation_is_followed_with_its_spread() {
        let raw: Vec<f64> = (0..2000).map(|n| f64::from(n) / 100.0).collect();
        let noise = |n: usize| if n.is_multiple_of(2) { 0.3 } else { -0.3 };
        let truth: Vec<f64> = raw.iter().enumerate().map(|(n, &x)| (x - 10.0).max(0.0) + noise(n)).collect();
        let curve = Calibration::fit(&raw, &truth).unwrap();
        let (high, spread, reach) = curve.predict(19.0);
        assert!((high - 9.0).abs() < 0.6, "{high}");
        assert!((0.25..0.7).contains(&spread), "{spread}");
        assert!((0.25..0.7).contains(&reach), "{reach}");
        assert!(curve.predict(4.0).0 < 0.6);
    }

    #[test]
    fn the_interval_holds_its_share_of_what_comes_after_few_requests_and_after_many() {
        for (count, times) in [(30, 200), (100, 100), (2000, 5)] {
            let mut random = fastrand::Rng::with_seed(1);
            let mut request = || {
                let raw = 4.0 * random.f64();
                (raw, raw.sqrt() + 0.3 * ((0..12).map(|_| random.f64()).sum::<f64>() - 6.0))
            };
            let (mut within, mut of) = (0, 0);
            for _ in 0..times {
                let (raw, truth): (Vec<f64>, Vec<f64>) = (0..count).map(|_| request()).unzip();
                let curve = Calibration::fit(&raw, &truth).unwrap();
                for _ in 0..200 {
                    let (raw, truth) = request();
                    let (middle, _, reach) = curve.predict(raw as f32);
                    within += i32::from((truth - f64::from(middle)).abs() <= f64::from(reach));
                    of += 1;
                }
            }
            let share = f64::from(within) / f64::from(of);
            assert!((0.78..0.83).contains(&share), "{share} after {count}");
        }
    }

    #[test]
    fn a_request_is_compared_with_a_curve_that_does_not_know_it() {
        let mut points: Vec<(f64, f64)> = (0..60).map(|n| (f64::from(n), f64::from(n) / 10.0)).collect();
        let before = strayed(&points);
        points[31].1 += 100.0;
        let after = strayed(&points);
        assert!((after[31] - before[31] - 100.0).abs() < 1e-9, "{}", after[31]);
        assert_ne!(after[32], before[32], "its neighbour of another part is compared with a curve that does");
        assert_eq!(after[36], before[36]);
    }

    #[test]
    fn nothing_finite_to_fit_gives_no_curve() {
        assert!(Calibration::fit(&[1.0], &[1.0]).is_none());
        assert!(Calibration::fit(&[1.0, f64::NAN], &[1.0, 2.0]).is_none());
    }
}
