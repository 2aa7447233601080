//! Files of recorded arrivals.

use std::path::Path;

use anyhow::{Context, Result};

/// Recorded arrivals, plain or gzip, in seconds and in the order of the file: a column `TIMESTAMP` (Azure: date and time),
/// `timestamp_ms` (Mooncake) or `t_s` (ServeGen).
pub(super) fn read(path: &Path) -> Result<Vec<f64>> {
    let text = crate::files::text(path)?;
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

    fn csv(text: &str) -> Result<Vec<f64>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("arrivals.csv");
        std::fs::write(&path, text)?;
        read(&path)
    }

    #[test]
    fn each_recorded_format_gives_seconds() {
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-30 23:59:59.5000000,4808,10\n\
                     2023-12-01 00:00:01.0000000,3180,8\n";
        let times = csv(azure).unwrap();
        assert_eq!(times[1] - times[0], 1.5);
        assert_eq!(csv("timestamp_ms,input_tokens\n3000,1\n5000,1\n").unwrap(), [3.0, 5.0]);
        assert_eq!(csv("t_s,input_tokens\n1,1\n4,1\n2,1\n").unwrap(), [1.0, 4.0, 2.0]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = csv("t_s\n1\nnoon\n").unwrap_err();
        assert!(format!("{error:#}").contains("arrivals.csv:3: not a time: \"noon\""), "{error:#}");
        assert!(format!("{:#}", csv("time\n1\n").unwrap_err()).contains("no column TIMESTAMP"));
    }

    #[test]
    fn a_leap_day_counts() {
        let text = "TIMESTAMP\n2024-02-28 00:00:00\n2024-03-01 00:00:00\n";
        let times = csv(text).unwrap();
        assert_eq!(times[1] - times[0], 2.0 * 86_400.0);
    }
}
