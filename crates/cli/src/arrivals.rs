//! When requests arrive: all at once, at random, or as they once did in production.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

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
    /// Recorded arrivals.
    Csv(PathBuf),
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let known = "burst:N, poisson:RATE (requests/s), gamma:RATE:CV, load:X (of measured capacity), csv:FILE or serial:N";
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

impl Arrivals {
    /// Seconds from the start at which requests arrive, in order. `capacity` is what the target can serve, in requests
    /// a second, for [`Arrivals::Load`].
    pub(crate) fn times(&self, window: &Window, capacity: Option<f64>) -> Result<Vec<f64>> {
        let times = match self {
            Self::Burst(n) | Self::Serial(n) => vec![0.0; window.requests.map_or(*n, |limit| limit.min(*n))],
            Self::Poisson(rate) => poisson(*rate, window),
            Self::Gamma(rate, cv) => gamma(*rate, *cv, window),
            Self::Load(load) => {
                let capacity = capacity.context("load: the capacity of the target was not measured")?;
                poisson(load * capacity, window)
            }
            Self::Csv(path) => within(scaled(read_csv(path)?, window.rate), window),
        };
        if times.is_empty() {
            bail!(
                "{self}: no request arrives within {} s; raise the rate or --duration-s",
                window.duration_s
            );
        }
        Ok(times)
    }

    /// Refuses settings that this pattern would ignore.
    pub(crate) fn check(&self, rate: Option<f64>, duration_s: Option<f64>) -> Result<()> {
        if rate.is_some() && !matches!(self, Self::Csv(_)) {
            return Err(usage(format!("--rate scales csv: arrivals; it means nothing for {self}")));
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
    let mut random = fastrand::Rng::with_seed(window.seed);
    let mut at_s = 0.0;
    let times = std::iter::repeat_with(|| {
        at_s -= (1.0 - random.f64()).ln() / rate;
        at_s
    });
    let limit = window.requests.unwrap_or(usize::MAX);
    times.take_while(|at_s| *at_s <= window.duration_s).take(limit).collect()
}

fn gamma(rate: f64, cv: f64, window: &Window) -> Vec<f64> {
    let mut random = fastrand::Rng::with_seed(window.seed);
    let shape = 1.0 / (cv * cv);
    let mut at_s = 0.0;
    let times = std::iter::repeat_with(|| {
        at_s += gamma_variate(shape, &mut random) / (shape * rate);
        at_s
    });
    let limit = window.requests.unwrap_or(usize::MAX);
    times.take_while(|at_s| *at_s <= window.duration_s).take(limit).collect()
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
        let normal = (-2.0 * (1.0 - random.f64()).ln()).sqrt() * (std::f64::consts::TAU * random.f64()).cos();
        let v = (1.0 + c * normal).powi(3);
        let uniform: f64 = 1.0 - random.f64();
        if v > 0.0 && uniform.ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

fn within(times: Vec<f64>, window: &Window) -> Vec<f64> {
    let limit = window.requests.unwrap_or(usize::MAX);
    times.into_iter().take_while(|at_s| *at_s <= window.duration_s).take(limit).collect()
}

/// Stretches times so that their mean rate is `rate`.
fn scaled(mut times: Vec<f64>, rate: Option<f64>) -> Vec<f64> {
    let span_s = times.last().copied().unwrap_or(0.0);
    if let Some(rate) = rate.filter(|_| span_s > 0.0) {
        let factor = (times.len() - 1) as f64 / span_s / rate;
        times.iter_mut().for_each(|at_s| *at_s *= factor);
    }
    times
}

/// Recorded arrivals, plain or gzip, in seconds since the first: a column `TIMESTAMP` (Azure: date and time),
/// `timestamp_ms` (Mooncake) or `t_s` (ServeGen).
fn read_csv(path: &Path) -> Result<Vec<f64>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_string(&mut text)
    } else {
        (&bytes[..]).read_to_string(&mut text)
    }
    .with_context(|| path.display().to_string())?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split(',').map(str::trim).collect();
    type Parser = fn(&str) -> Option<f64>;
    let parsers: [(&str, Parser); 3] = [
        ("TIMESTAMP", seconds_of_date),
        ("timestamp_ms", |cell| cell.parse::<f64>().ok().map(|ms| ms / 1000.0)),
        ("t_s", |cell| cell.parse().ok()),
    ];
    let found =
        parsers.iter().find_map(|(name, parse)| Some((header.iter().position(|h| h == name)?, parse)));
    let (column, parse) = found.with_context(|| {
        format!("{}:1: no column TIMESTAMP, timestamp_ms or t_s among {}", path.display(), header.join(", "))
    })?;
    let mut times = Vec::new();
    for (index, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let cell = line.split(',').nth(column).unwrap_or_default().trim();
        let time = parse(cell).filter(|time| time.is_finite());
        times.push(time.with_context(|| format!("{}:{}: not a time: {cell:?}", path.display(), index + 2))?);
    }
    times.sort_by(f64::total_cmp);
    let first = times.first().copied().unwrap_or(0.0);
    times.iter_mut().for_each(|time| *time -= first);
    Ok(times)
}

/// Seconds since 1970 of `2023-11-16 18:17:03.9799600`.
fn seconds_of_date(cell: &str) -> Option<f64> {
    let (date, time) = cell.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let time = time.trim_end_matches('Z').split('+').next()?;
    let mut time = time.splitn(3, ':').map(|part| part.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    // Days of the proleptic Gregorian calendar, years starting in March (Howard Hinnant's `days_from_civil`).
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days as f64 * 86_400.0 + hour * 3600.0 + minute * 60.0 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { duration_s: 60.0, requests: None, rate: None, seed: 7 };

    fn csv(text: &str, window: &Window) -> Result<Vec<f64>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("arrivals.csv");
        std::fs::write(&path, text)?;
        Arrivals::Csv(path).times(window, None)
    }

    #[test]
    fn patterns_are_read_as_they_are_written() {
        for text in ["burst:100", "serial:30", "poisson:2.5", "load:0.8"] {
            assert_eq!(text.parse::<Arrivals>().unwrap().to_string(), text);
        }
        for text in ["burst", "burst:0", "burst:-1", "poisson:nan", "poisson:0", "load:x", "csv:", "ramp:1"] {
            assert!(text.parse::<Arrivals>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_poisson_process_has_its_rate_its_gaps_and_its_seed() {
        let window = Window { duration_s: 2000.0, ..WINDOW };
        let times = Arrivals::Poisson(5.0).times(&window, None).unwrap();
        assert!((times.len() as f64 / 10_000.0 - 1.0).abs() < 0.03, "{}", times.len());
        // Gaps are exponential: their standard deviation is their mean.
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.05, "{deviation} against {mean}");
        assert_eq!(times, Arrivals::Load(0.5).times(&window, Some(10.0)).unwrap());
        assert_ne!(times, Arrivals::Poisson(5.0).times(&Window { seed: 8, ..window }, None).unwrap());
    }

    #[test]
    fn gamma_gaps_have_their_mean_and_their_coefficient_of_variation() {
        for cv in [0.5, 1.0, 3.0] {
            let window = Window { duration_s: 20_000.0, ..WINDOW };
            let times = Arrivals::Gamma(5.0, cv).times(&window, None).unwrap();
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
    fn each_recorded_format_gives_seconds_since_the_first_arrival() {
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-30 23:59:59.5000000,4808,10\n\
                     2023-12-01 00:00:01.0000000,3180,8\n";
        assert_eq!(csv(azure, &WINDOW).unwrap(), [0.0, 1.5]);
        assert_eq!(csv("timestamp_ms,input_tokens\n3000,1\n5000,1\n", &WINDOW).unwrap(), [0.0, 2.0]);
        assert_eq!(csv("t_s,input_tokens\n1,1\n4,1\n2,1\n", &WINDOW).unwrap(), [0.0, 1.0, 3.0]);
    }

    #[test]
    fn recorded_arrivals_are_scaled_to_the_asked_rate_and_cut_to_the_window() {
        let text = "t_s\n0\n10\n20\n30\n";
        let scaled = csv(text, &Window { rate: Some(1.0), ..WINDOW }).unwrap();
        assert_eq!(scaled, [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(csv(text, &Window { duration_s: 15.0, ..WINDOW }).unwrap(), [0.0, 10.0]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = csv("t_s\n1\nnoon\n", &WINDOW).unwrap_err();
        assert!(format!("{error:#}").contains("arrivals.csv:3: not a time: \"noon\""), "{error:#}");
        assert!(format!("{:#}", csv("time\n1\n", &WINDOW).unwrap_err()).contains("no column TIMESTAMP"));
    }

    #[test]
    fn a_leap_day_counts() {
        let text = "TIMESTAMP\n2024-02-28 00:00:00\n2024-03-01 00:00:00\n";
        assert_eq!(csv(text, &Window { duration_s: 1e9, ..WINDOW }).unwrap(), [0.0, 2.0 * 86_400.0]);
    }
}
