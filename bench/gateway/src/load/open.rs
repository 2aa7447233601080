//! The open loop: requests at a fixed rate, whether or not answers come back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::args::{OpenArgs, mixed};
use crate::client::Client;
use crate::tally::{Meter, Tally};

/// Before the first request: time to set things up.
const LEAD: Duration = Duration::from_millis(20);

pub(crate) async fn run(args: OpenArgs) -> Result<Value> {
    let client = Arc::new(Client::new(&args.what)?);
    let start = Instant::now() + LEAD;
    let warm = start + Duration::from_secs_f64(args.what.warm_up_s);
    let offsets = offsets(&args);
    let sent = offsets.len();
    let mut due = paced(start, offsets);
    let (mut running, mut meter, mut peak) = (JoinSet::new(), None, 0);
    while let Some(due) = due.recv().await {
        if meter.is_none() && due >= warm {
            *client.tally() = Tally::default();
            meter = Some(Meter::start(&args.what.pids));
        }
        let client = Arc::clone(&client);
        running.spawn(async move {
            client.request(due).await;
        });
        while running.try_join_next().is_some() {}
        peak = peak.max(running.len());
    }
    let drained = async { while running.join_next().await.is_some() {} };
    let drained = timeout(Duration::from_secs_f64(args.drain_s), drained).await.is_ok();
    let took = start.elapsed().as_secs_f64() - args.what.warm_up_s;
    let mut report = client.tally().report(took);
    report["sent"] = json!(sent);
    report["offered_per_s"] = json!(args.rate);
    report["unanswered"] = json!(if drained { 0 } else { running.len() });
    report["peak_in_flight"] = json!(peak);
    report["usage"] = meter.map_or(Value::Null, |meter| meter.report());
    Ok(report)
}

/// When requests should be sent, after the start.
fn offsets(args: &OpenArgs) -> Vec<Duration> {
    let end = args.what.warm_up_s + args.what.duration_s;
    let (mut at, mut number, mut offsets) = (0.0, 0, Vec::new());
    while at < end {
        offsets.push(Duration::from_secs_f64(at));
        number += 1;
        at += match args.poisson {
            None => 1.0 / args.rate,
            Some(seed) => {
                let uniform = (mixed(seed << 32 | number) >> 11) as f64 / (1_u64 << 53) as f64;
                -(1.0 - uniform).ln() / args.rate
            }
        };
    }
    offsets
}

/// Hands out the times as they come. A thread of its own, because it sleeps more precisely than the runtime's timer, whose
/// millisecond is more than what is measured.
fn paced(start: Instant, offsets: Vec<Duration>) -> mpsc::UnboundedReceiver<Instant> {
    let (give, take) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for offset in offsets {
            let due = start + offset;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if give.send(due).is_err() {
                return;
            }
        }
    });
    take
}
