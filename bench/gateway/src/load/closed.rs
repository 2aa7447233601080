//! The closed loop: a number of requests in flight at all times.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::args::ClosedArgs;
use crate::client::Client;
use crate::tally::{Meter, Tally};

/// After an error, before the connection tries again: a server that is down is not flooded.
const AFTER_ERROR: Duration = Duration::from_millis(20);

pub(crate) async fn run(args: ClosedArgs) -> Result<Value> {
    let client = Arc::new(Client::new(&args.what)?);
    let begin = Instant::now();
    for number in 0..args.connections {
        let client = Arc::clone(&client);
        let start = begin + Duration::from_secs_f64(args.ramp_s * number as f64 / args.connections as f64);
        tokio::spawn(async move {
            sleep_until(start).await;
            loop {
                let due = Instant::now();
                if !client.request(due).await {
                    sleep(AFTER_ERROR).await;
                }
            }
        });
    }
    sleep(Duration::from_secs_f64(args.ramp_s + args.what.warm_up_s)).await;
    *client.tally() = Tally::default();
    let (meter, start) = (Meter::start(&args.what.pids), Instant::now());
    let whole = Duration::from_secs_f64(args.what.duration_s);
    let window = if args.window_s > 0.0 { Duration::from_secs_f64(args.window_s) } else { whole };
    let (mut total, mut windows) = (Tally::default(), Vec::new());
    while start.elapsed() < whole {
        let begun = Instant::now();
        sleep_until((begun + window).min(start + whole)).await;
        let mut tally = std::mem::take(&mut *client.tally());
        if args.window_s > 0.0 {
            let mut row = tally.report(begun.elapsed().as_secs_f64());
            row["at_s"] = json!(start.elapsed().as_secs_f64());
            row["usage"] = meter.report();
            windows.push(row);
        }
        total.merge(tally);
    }
    let mut report = total.report(start.elapsed().as_secs_f64());
    report["usage"] = meter.report();
    report["windows"] = json!(windows);
    Ok(report)
}
