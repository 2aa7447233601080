//! From values to pixels, and the ticks of an axis.

/// Labelled ticks that an axis has at most.
const MAX_TICKS: f64 = 8.0;
/// Smallest ratio between the ends of a logarithmic axis.
const MIN_RATIO: f64 = 1.5;

/// A tick: where, and its label.
pub(super) type Tick = (f64, String);

/// A range of values, drawn linearly or logarithmically.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    /// A linear scale from 0 that holds every value.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>) -> Self {
        let largest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        Self { log: false, from: 0.0, to: if largest > 0.0 { largest * 1.04 } else { 1.0 } }
    }

    /// A linear scale around every value.
    pub(super) fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values).unwrap_or((0.0, 1.0));
        let margin = if high > low { (high - low) * 0.06 } else { 0.5 };
        Self { log: false, from: low - margin, to: high + margin }
    }

    /// A linear scale of exactly this range.
    pub(super) fn range(from: f64, to: f64) -> Self {
        Self { log: false, from, to: if to > from { to } else { from + 1.0 } }
    }

    /// A logarithmic scale that holds every positive value; what is not positive goes to its lower end.
    pub(super) fn log(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values.filter(|&value| value > 0.0)).unwrap_or((0.1, 1.0));
        let margin = (high / low).powf(0.04).max((MIN_RATIO * low / high).sqrt());
        Self { log: true, from: low / margin, to: high * margin }
    }

    /// Where a value lies: 0 at the lower end, 1 at the upper. What lies outside goes to the nearer end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let value = if value.is_nan() { self.from } else { value.clamp(self.from, self.to) };
        if self.log {
            (value / self.from).ln() / (self.to / self.from).ln()
        } else {
            (value - self.from) / (self.to - self.from)
        }
    }

    /// Round values with their labels.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        let decades = (self.to / self.from).log10();
        match decades {
            _ if !self.log || decades < 0.5 => self.round_ticks(),
            _ if decades <= 1.2 => self.decade_ticks(&[1.0, 2.0, 3.0, 5.0, 7.0], 1),
            _ if decades <= 3.2 => self.decade_ticks(&[1.0, 2.0, 5.0], 1),
            _ => self.decade_ticks(&[1.0], (decades / MAX_TICKS).ceil() as usize),
        }
    }

    fn round_ticks(&self) -> Vec<Tick> {
        let rough = (self.to - self.from) / MAX_TICKS;
        let magnitude = 10_f64.powi(rough.log10().floor() as i32);
        let step = [1.0, 2.0, 5.0, 10.0].map(|it| it * magnitude).into_iter().find(|&step| step >= rough);
        let step = step.unwrap_or(rough);
        let first = (self.from / step - 1e-9).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).map(|n| n as f64 * step).map(|value| (value, label(value, step))).collect()
    }

    fn decade_ticks(&self, steps: &[f64], every: usize) -> Vec<Tick> {
        let (first, last) = (self.from.log10().floor() as i32, self.to.log10().ceil() as i32);
        let decades = (first..=last).step_by(every);
        let values = decades.flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)));
        values
            .filter(|value| (self.from * 0.999..=self.to * 1.001).contains(value))
            .map(|value| (value, label(value, value)))
            .collect()
    }
}

fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |ends, value| {
        let (low, high) = ends.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// A value with the digits that tell it from its neighbour `step` away.
fn label(value: f64, step: f64) -> String {
    if step < 1e-4 || value >= 1e6 {
        return format!("{value:.0e}");
    }
    let digits = (-(step * 1.001).log10().floor()).max(0.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(labels(Scale::range(0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Scale::from_zero([870.0].into_iter())), ["0", "200", "400", "600", "800"]);
        let log = |low, high| labels(Scale::log([low, high].into_iter()));
        assert_eq!(log(0.1, 2.0), ["0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(log(0.02, 0.14), ["0.02", "0.03", "0.05", "0.07", "0.1"]);
        assert_eq!(log(0.001, 90.0), ["0.001", "0.01", "0.1", "1", "10", "100"]);
        assert!(log(1e-9, 1e9).len() <= 9);
    }

    #[test]
    fn one_value_none_zeros_and_what_is_no_number_still_have_a_place() {
        for values in [vec![], vec![0.0], vec![3.0], vec![0.0, 3.0], vec![f64::NAN, f64::INFINITY]] {
            let all = || values.iter().copied();
            for scale in [Scale::log(all()), Scale::from_zero(all()), Scale::around(all())] {
                assert!(scale.to > scale.from && !scale.ticks().is_empty(), "{scale:?}");
                for value in [-1.0, 0.0, 3.0, f64::NAN, f64::INFINITY] {
                    assert!((0.0..=1.0).contains(&scale.at(value)), "{scale:?} {value}");
                }
            }
        }
    }

    #[test]
    fn a_logarithmic_scale_gives_each_decade_the_same_room() {
        let scale = Scale { log: true, from: 1.0, to: 100.0 };
        assert!((scale.at(10.0) - 0.5).abs() < 1e-12);
        assert_eq!((scale.at(0.0), scale.at(100.0)), (0.0, 1.0));
    }
}
