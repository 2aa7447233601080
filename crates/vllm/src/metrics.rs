//! What the plug-in shows in vLLM's `/metrics`, each name with the prefix `outrank:`.

use crate::Status;

/// How a figure behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It only grows; published is by how much.
    Counter,
    /// It goes up and down; not a number where nothing is known.
    Gauge,
}

/// One of the figures.
struct Metric {
    kind: Kind,
    name: &'static str,
    help: &'static str,
    read: fn(&Status) -> f64,
}

/// A figure to be published.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// How it behaves.
    pub kind: Kind,
    /// Its name, without the prefix.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Of a counter, what it grew by since it was published before.
    pub value: f64,
}

const fn counter(name: &'static str, help: &'static str, read: fn(&Status) -> f64) -> Metric {
    Metric { kind: Kind::Counter, name, help, read }
}

const fn gauge(name: &'static str, help: &'static str, read: fn(&Status) -> f64) -> Metric {
    Metric { kind: Kind::Gauge, name, help, read }
}

const METRICS: [Metric; 13] = [
    counter("scored", "Prompts scored", |it| it.scored as f64),
    counter("learned", "Rankers learned from served answers", |it| it.learned as f64),
    counter("finished", "Requests that ended with their answer", |it| it.finished as f64),
    counter("seat_preemptions", "Times a running request lost its seat to a waiting one", |it| {
        it.seat_preemptions as f64
    }),
    counter("promotions", "Promotions by starvation prevention (policy ltr)", |it| it.promotions as f64),
    gauge("waiting", "Requests that wait", |it| it.waiting as f64),
    gauge("running", "Requests with a seat", |it| it.running as f64),
    gauge(
        "trusted",
        "Whether scores order the queue: 1, or 0 while the monitor has fallen back to arrival",
        |it| f64::from(u8::from(it.trusted)),
    ),
    gauge("concordance", "Concordance of scores and lengths of requests that ended, 0 for chance", |it| {
        it.concordance.unwrap_or(f64::NAN)
    }),
    gauge("learned_tau_b", "Kendall tau-b on unseen answers of the ranker learned last", |it| {
        it.learned_tau_b.unwrap_or(f64::NAN)
    }),
    gauge("backlog_s", "Seconds until all who wait have been served", |it| it.backlog_s),
    gauge("decode_s", "Measured seconds of a step without prefill", |it| it.decode_s),
    gauge("prefill_s", "Measured seconds that a prefill token adds to a step", |it| it.prefill_s),
];

/// What was published last.
#[derive(Debug)]
pub struct Publisher {
    before: Status,
}

impl Publisher {
    /// Nothing has been published since `start`.
    pub fn new(start: Status) -> Self {
        Self { before: start }
    }

    /// The figures of now, and what a person must be told: that scores are no longer followed, or are again.
    pub fn publish(&mut self, now: Status) -> (Vec<Figure>, Option<String>) {
        let before = std::mem::replace(&mut self.before, now);
        let now = &self.before;
        let figures = METRICS.iter().map(|metric| {
            let value = match metric.kind {
                Kind::Counter => (metric.read)(now) - (metric.read)(&before),
                Kind::Gauge => (metric.read)(now),
            };
            Figure { kind: metric.kind, name: metric.name, help: metric.help, value }
        });
        let told = (now.trusted != before.trusted).then(|| {
            let followed = if now.trusted { "are followed again" } else { "are no longer followed" };
            format!("scores {followed}: {}", now.json())
        });
        (figures.collect(), told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(scored: u64, waiting: usize, trusted: bool) -> Status {
        Status { scored, waiting, trusted, ..Status::default() }
    }

    fn value(figures: &[Figure], name: &str) -> f64 {
        figures.iter().find(|it| it.name == name).unwrap().value
    }

    #[test]
    fn counters_tell_what_they_grew_by_and_gauges_where_they_stand() {
        let mut publisher = Publisher::new(status(0, 0, true));
        for (scored, waiting, grew) in [(5, 7, 5.0), (5, 3, 0.0), (6, 9, 1.0)] {
            let (figures, _) = publisher.publish(status(scored, waiting, true));
            assert_eq!((value(&figures, "scored"), value(&figures, "waiting")), (grew, waiting as f64));
            assert!(value(&figures, "concordance").is_nan());
        }
    }

    #[test]
    fn a_change_of_trust_is_told_once() {
        let mut publisher = Publisher::new(status(0, 0, true));
        let mut told = |trusted| publisher.publish(status(0, 0, trusted)).1;
        assert_eq!(told(true), None);
        assert!(told(false).unwrap().contains("no longer"));
        assert_eq!(told(false), None);
        assert!(told(true).unwrap().contains("again"));
    }

    #[test]
    fn every_figure_has_a_name_of_its_own() {
        let mut names: Vec<_> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }
}
