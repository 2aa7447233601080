//! Which requests arrive when: all at once, at random, or as they once did in production.

mod csv;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use outrank_ranker::TraceRecord;

use crate::error::usage;

/// A pattern of arrivals, as the command line names it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Arrivals {
    /// So many requests at once.
    Burst(usize),
    /// So many requests, each sent when the one before is answered.
    Serial(usize),
    /// A Poisson process of so many requests a second.
    Poisson(f64),
    /// A renewal process of so many requests a second whose gaps are gamma distributed with this coefficient of variation:
    /// 1 is Poisson, more is burstier.
    Gamma(f64, f64),
    /// A Poisson process at this fraction of the measured capacity.
    Load(f64),
    /// Recorded arrivals, whoever they were.
    Csv(PathBuf),
    /// The requests of the trace when they arrived.
    Trace,
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = "burst:N, poisson:RATE (requests/s), gamma:RATE:CV, load:X (of measured capacity), csv:FILE, \
                     trace or serial:N";
        if text == "trace" {
            return Ok(Self::Trace);
        }
        let (kind, value) = text.split_once(':').ok_or_else(|| format!("expected {known}"))?;
        let count = || match value.parse::<usize>() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("{kind}: expected a whole number of at least 1, found {value:?}")),
        };
        let rate = || match value.parse::<f64>() {
            Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(format!("{kind}: expected a positive number, found {value:?}")),
        };
        match kind {
            "burst" => count().map(Self::Burst),
            "serial" => count().map(Self::Serial),
            "poisson" => rate().map(Self::Poisson),
            "gamma" => {
                let parts = value.split_once(':').map(|(rate, cv)| (rate.parse::<f64>(), cv.parse::<f64>()));
                match parts {
                    Some((Ok(rate), Ok(cv)))
                        if rate > 0.0 && cv > 0.0 && rate.is_finite() && cv.is_finite() =>
                    {
                        Ok(Self::Gamma(rate, cv))
                    }
                    _ => Err(format!("gamma: expected RATE:CV, two positive numbers, found {value:?}")),
                }
            }
            "load" => rate().map(Self::Load),
            "csv" if !value.is_empty() => Ok(Self::Csv(value.into())),
            _ => Err(format!("expected {known}, found {text:?}")),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Burst(n) => write!(f, "burst:{n}"),
            Self::Serial(n) => write!(f, "serial:{n}"),
            Self::Poisson(rate) => write!(f, "poisson:{rate}"),
            Self::Gamma(rate, cv) => write!(f, "gamma:{rate}:{cv}"),
            Self::Load(load) => write!(f, "load:{load}"),
            Self::Csv(path) => write!(f, "csv:{}", crate::files::name(path)),
            Self::Trace => f.write_str("trace"),
        }
    }
}

/// How much of a pattern is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// No arrival after so many seconds.
    pub(crate) duration_s: f64,
    /// No more requests than this.
    pub(crate) requests: Option<usize>,
    /// Scales recorded arrivals to this mean rate, in requests a second.
    pub(crate) rate: Option<f64>,
    /// Seed of random arrivals.
    pub(crate) seed: u64,
}

/// One request to send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Arrival {
    /// When, in seconds since the start.
    pub(crate) at_s: f64,
    /// Which record of the trace.
    pub(crate) record: usize,
}

impl Arrivals {
    /// Which records arrive when, in order of arrival: those of [`Arrivals::Trace`] at their own times, otherwise drawn as
    /// [`drawn`] does. `capacity` is what the target can serve, in requests a second, for [`Arrivals::Load`].
    pub(crate) fn schedule(
        &self,
        records: &[TraceRecord],
        window: &Window,
        capacity: Option<f64>,
    ) -> Result<Vec<Arrival>> {
        let times = match self {
            Self::Burst(n) | Self::Serial(n) => vec![0.0; window.requests.map_or(*n, |limit| limit.min(*n))],
            Self::Poisson(rate) => poisson(*rate, window),
            Self::Gamma(rate, cv) => gamma(*rate, *cv, window),
            Self::Load(load) => {
                let capacity = capacity.context("load: the capacity of the target was not measured")?;
                poisson(load * capacity, window)
            }
            Self::Csv(path) => {
                replayed(&csv::read(path)?, window).iter().map(|arrival| arrival.at_s).collect()
            }
            Self::Trace => {
                let times = records.iter().map(recorded_s).collect::<Result<Vec<_>>>()?;
                return Ok(replayed(&times, window));
            }
        };
        if times.is_empty() {
            bail!(
                "{self}: no request arrives within {} s; raise the rate or --duration-s",
                window.duration_s
            );
        }
        Ok(drawn(&times, records.len(), window.seed))
    }

    /// Refuses settings that this pattern would ignore.
    pub(crate) fn check(&self, rate: Option<f64>, duration_s: Option<f64>) -> Result<()> {
        if rate.is_some() && !matches!(self, Self::Csv(_) | Self::Trace) {
            return Err(usage(format!("--rate scales csv: and trace arrivals; it means nothing for {self}")));
        }
        if duration_s.is_some() && matches!(self, Self::Burst(_) | Self::Serial(_)) {
            return Err(usage(format!(
                "--duration-s means nothing for {self}: it ends when all are answered"
            )));
        }
        Ok(())
    }
}

fn poisson(rate: f64, window: &Window) -> Vec<f64> {
    renewal(window, |random| -(1.0 - random.f64()).ln() / rate)
}

fn gamma(rate: f64, cv: f64, window: &Window) -> Vec<f64> {
    let shape = 1.0 / (cv * cv);
    renewal(window, |random| gamma_variate(shape, random) / (shape * rate))
}

/// Arrivals whose gaps are drawn one after the other.
fn renewal(window: &Window, mut gap_s: impl FnMut(&mut fastrand::Rng) -> f64) -> Vec<f64> {
    let mut random = fastrand::Rng::with_seed(window.seed);
    let mut at_s = 0.0;
    let times = std::iter::repeat_with(|| {
        at_s += gap_s(&mut random);
        at_s
    });
    let limit = window.requests.unwrap_or(usize::MAX);
    times.take_while(|at_s| *at_s <= window.duration_s).take(limit).collect()
}

/// A standard normal variate (Box and Muller's transform of two uniform ones).
pub(crate) fn standard_normal(random: &mut fastrand::Rng) -> f64 {
    (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos()
}

/// A gamma variate of the given shape and scale 1 (Marsaglia and Tsang, "A simple method for generating gamma variables",
/// ACM TOMS 2000; shapes below 1 by their boost).
fn gamma_variate(shape: f64, random: &mut fastrand::Rng) -> f64 {
    if shape < 1.0 {
        let uniform: f64 = 1.0 - random.f64();
        return gamma_variate(shape + 1.0, random) * uniform.powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let normal = standard_normal(random);
        let v = (1.0 + c * normal).powi(3);
        let uniform: f64 = 1.0 - random.f64();
        if v > 0.0 && uniform.ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// The recorded arrival of a request, in seconds.
pub(crate) fn recorded_s(record: &TraceRecord) -> Result<f64> {
    record.arrival_s.context("has no `arrival_s`, which --arrivals trace replays")
}

/// Recorded times in order, from the first on, stretched to the asked rate and cut to the window.
pub(crate) fn replayed(times: &[f64], window: &Window) -> Vec<Arrival> {
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by(|&a, &b| times[a].total_cmp(&times[b]));
    let (Some(&first), Some(&last)) = (order.first(), order.last()) else { return Vec::new() };
    let span_s = times[last] - times[first];
    let factor = match window.rate {
        Some(rate) if span_s > 0.0 => (times.len() - 1) as f64 / span_s / rate,
        _ => 1.0,
    };
    let arrival = |record| Arrival { at_s: (times[record] - times[first]) * factor, record };
    let limit = window.requests.unwrap_or(usize::MAX);
    let arrivals = order.iter().map(|&record| arrival(record));
    arrivals.take_while(|arrival| arrival.at_s <= window.duration_s).take(limit).collect()
}

/// A record for each time, drawn from so many without replacement by a shuffle with `seed`; a trace that is too short
/// starts over.
pub(crate) fn drawn(times: &[f64], records: usize, seed: u64) -> Vec<Arrival> {
    let mut order: Vec<usize> = (0..records).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let chosen = order.into_iter().cycle();
    times.iter().zip(chosen).map(|(&at_s, record)| Arrival { at_s, record }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrank_ranker::trace::Prompt;

    const WINDOW: Window = Window { duration_s: 60.0, requests: None, rate: None, seed: 7 };

    fn records(arrivals_s: &[Option<f64>]) -> Vec<TraceRecord> {
        let record = |(index, &arrival_s): (usize, &Option<f64>)| {
            let prompt = Prompt::Text(index.to_string());
            TraceRecord { arrival_s, ..TraceRecord::new(prompt) }
        };
        arrivals_s.iter().enumerate().map(record).collect()
    }

    /// Times alone, of a trace that is long enough.
    fn times(arrivals: &Arrivals, window: &Window, capacity: Option<f64>) -> Vec<f64> {
        let schedule = arrivals.schedule(&records(&[None; 20_000]), window, capacity).unwrap();
        schedule.iter().map(|arrival| arrival.at_s).collect()
    }

    #[test]
    fn patterns_are_read_as_they_are_written() {
        for text in ["burst:100", "serial:30", "poisson:2.5", "load:0.8", "trace"] {
            assert_eq!(text.parse::<Arrivals>().unwrap().to_string(), text);
        }
        for text in [
            "burst",
            "burst:0",
            "burst:-1",
            "poisson:nan",
            "poisson:0",
            "load:x",
            "csv:",
            "ramp:1",
            "trace:1",
        ] {
            assert!(text.parse::<Arrivals>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_poisson_process_has_its_rate_its_gaps_and_its_seed() {
        let window = Window { duration_s: 2000.0, ..WINDOW };
        let found = times(&Arrivals::Poisson(5.0), &window, None);
        assert!((found.len() as f64 / 10_000.0 - 1.0).abs() < 0.03, "{}", found.len());
        // Gaps are exponential: their standard deviation is their mean.
        let gaps: Vec<f64> = found.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.05, "{deviation} against {mean}");
        assert_eq!(found, times(&Arrivals::Load(0.5), &window, Some(10.0)));
        assert_ne!(found, times(&Arrivals::Poisson(5.0), &Window { seed: 8, ..window }, None));
    }

    #[test]
    fn gamma_gaps_have_their_mean_and_their_coefficient_of_variation() {
        for cv in [0.5, 1.0, 3.0] {
            let window = Window { duration_s: 20_000.0, ..WINDOW };
            let times = times(&Arrivals::Gamma(5.0, cv), &window, None);
            let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!(
                (mean * 5.0 - 1.0).abs() < 0.05 && (variance.sqrt() / mean / cv - 1.0).abs() < 0.05,
                "{cv}"
            );
        }
    }

    #[test]
    fn recorded_arrivals_are_scaled_to_the_asked_rate_and_cut_to_the_window() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arrivals.csv");
        std::fs::write(&path, "t_s\n20\n10\n30\n40\n").unwrap();
        let csv = Arrivals::Csv(path);
        assert_eq!(times(&csv, &WINDOW, None), [0.0, 10.0, 20.0, 30.0], "since the first");
        assert_eq!(times(&csv, &Window { rate: Some(1.0), ..WINDOW }, None), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(times(&csv, &Window { duration_s: 15.0, ..WINDOW }, None), [0.0, 10.0]);
    }

    #[test]
    fn a_trace_is_replayed_in_its_own_order_at_its_own_times() {
        let records = records(&[Some(107.0), Some(100.0), Some(103.0), Some(110.0)]);
        let replay = |window: &Window| {
            let schedule = Arrivals::Trace.schedule(&records, window, None).unwrap();
            schedule.iter().map(|arrival| (arrival.record, arrival.at_s)).collect::<Vec<_>>()
        };
        assert_eq!(replay(&WINDOW), [(1, 0.0), (2, 3.0), (0, 7.0), (3, 10.0)]);
        assert_eq!(replay(&Window { seed: 8, ..WINDOW }), replay(&WINDOW), "nothing is drawn");
        let twice = replay(&Window { rate: Some(0.6), ..WINDOW });
        assert_eq!(twice, [(1, 0.0), (2, 1.5), (0, 3.5), (3, 5.0)]);
        assert_eq!(replay(&Window { duration_s: 5.0, ..WINDOW }), [(1, 0.0), (2, 3.0)]);
        assert_eq!(replay(&Window { requests: Some(1), ..WINDOW }), [(1, 0.0)]);
    }

    #[test]
    fn a_trace_without_arrivals_cannot_be_replayed() {
        let error = Arrivals::Trace.schedule(&records(&[Some(0.0), None]), &WINDOW, None).unwrap_err();
        assert!(error.to_string().contains("has no `arrival_s`"), "{error}");
    }

    #[test]
    fn no_record_repeats_before_all_were_drawn_and_the_seed_decides_the_order() {
        let order = |seed| drawn(&[0.0; 60], 50, seed).iter().map(|it| it.record).collect::<Vec<_>>();
        let first = order(1);
        let mut once = first[..50].to_vec();
        once.sort_unstable();
        assert_eq!(once, (0..50).collect::<Vec<_>>());
        assert_eq!(first, order(1));
        assert_ne!(first, order(2));
    }
}
