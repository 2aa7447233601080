//! Two tenants at one upstream, in virtual time.

use super::virtual_run::{Run, Started};
use crate::config::GatewayConfig;

const SEATS: u32 = 32;
const FIRST_TOKEN_S: f64 = 0.05;
const TOKEN_S: f64 = 0.01;
const TOKENS: [u32; 4] = [8, 16, 32, 72];
const SERVICE_S: f64 = 0.36;

/// Means over the requests of the first tenant, in seconds; or sums of such means.
#[derive(PartialEq, Debug, Default)]
struct Latency {
    ttft_s: f64,
    e2e_s: f64,
}

impl Latency {
    fn of(started: &[Started]) -> Self {
        let of_first: Vec<_> = started.iter().filter(|it| it.lane == 0).collect();
        let mean = |of: &dyn Fn(&Started) -> f64| {
            of_first.iter().map(|it| of(it)).sum::<f64>() / of_first.len() as f64
        };
        Self {
            ttft_s: FIRST_TOKEN_S + mean(&Started::waited_s),
            e2e_s: mean(&|it| it.waited_s() + it.service_s),
        }
    }

    fn add(&mut self, other: &Self) {
        self.ttft_s += other.ttft_s;
        self.e2e_s += other.e2e_s;
    }
}

/// The first tenant sends `load` of what half of the seats can do; beside it, if wanted, a second sends ten times as much. So many
/// seats are kept free, if that is said. Also tells the share of the time in which a seat was taken.
fn serve(seats: u32, load: f64, beside: bool, spare_seats: Option<u32>, seed: u64) -> (Latency, f64) {
    let config = GatewayConfig { max_queue_requests: 64, spare_seats, ..GatewayConfig::default() };
    let mut run = Run::new(config, seats, &[1.0, 1.0], FIRST_TOKEN_S, TOKEN_S);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut exponential = move || -(1.0 - rng.f64()).ln();
    let rate = load * f64::from(SEATS / 2) / SERVICE_S;
    let mut next_s = [exponential() / rate, if beside { 0.0 } else { f64::INFINITY }];
    let end_s = 200.0;
    let mut lengths = fastrand::Rng::with_seed(seed + 1000);
    while run.now_s < end_s {
        let lane = usize::from(next_s[1] < next_s[0]);
        run.until(next_s[lane]);
        let tokens = TOKENS[lengths.usize(..4)];
        run.arrive(lane, tokens, f64::from(tokens));
        next_s[lane] += exponential() / (rate * [1.0, 10.0][lane]);
    }
    let served: f64 =
        run.ended.iter().map(|&(_, tokens)| FIRST_TOKEN_S + f64::from(tokens - 1) * TOKEN_S).sum();
    (Latency::of(&run.started), served / f64::from(seats) / end_s)
}

#[test]
fn without_spare_seats_a_tenant_under_its_share_waits_for_a_seat_to_come_free_and_for_nobody_who_waits() {
    for (load, most_ratio) in [(0.3, 1.08), (0.6, 1.06), (0.85, 1.06)] {
        let (mut alone, mut beside) = (Latency::default(), Latency::default());
        for seed in 0..8 {
            alone.add(&serve(SEATS / 2, load, false, Some(0), seed).0);
            let (latency, busy) = serve(SEATS, load, true, Some(0), seed);
            beside.add(&latency);
            assert!(busy > 0.99, "{load}, {seed}: seats idled, {busy}");
        }
        // No seat can be free for it: it waits until one of the other's answers ends, and now and then another of its own is first.
        let free_s = 8.0 * SERVICE_S / f64::from(SEATS) * 1.8;
        assert!(beside.ttft_s < alone.ttft_s + free_s, "{load}: {alone:?} alone, {beside:?} beside");
        assert!(beside.e2e_s < most_ratio * alone.e2e_s, "{load}: {alone:?} alone, {beside:?} beside");
    }
}

#[test]
fn unless_told_otherwise_one_of_32_seats_is_spare_and_a_tenant_under_its_share_hardly_notices_the_other() {
    for load in [0.3, 0.6, 0.85] {
        let (mut alone, mut beside) = (Latency::default(), Latency::default());
        for seed in 0..4 {
            alone.add(&serve(SEATS / 2, load, false, None, seed).0);
            let (latency, busy) = serve(SEATS, load, true, None, seed);
            beside.add(&latency);
            let seats = f64::from(SEATS);
            assert!(busy > (seats - 1.0) / seats - 0.01, "{load}, {seed}: more than that seat idled, {busy}");
        }
        assert!(beside.ttft_s < 1.1 * alone.ttft_s, "{load}: {alone:?} alone, {beside:?} beside");
        assert!(beside.e2e_s < 1.02 * alone.e2e_s, "{load}: {alone:?} alone, {beside:?} beside");
    }
    let (_, busy) = serve(SEATS, 10.0, false, None, 0);
    assert!(busy > 0.99, "a seat was kept for nobody: {busy}");
}

#[test]
fn of_8_to_31_seats_one_is_spare_too_and_a_tenant_under_its_share_is_within_a_fifth_of_what_it_has_alone() {
    for (seats, least_busy) in [(8_u32, 0.88), (16, 0.93)] {
        for load in [0.3, 0.6, 0.85] {
            let load = load * f64::from(seats) / f64::from(SEATS);
            let (mut alone, mut beside) = (Latency::default(), Latency::default());
            for seed in 0..6 {
                alone.add(&serve(seats / 2, load, false, None, seed).0);
                let (latency, busy) = serve(seats, load, true, None, seed);
                beside.add(&latency);
                assert!(busy > least_busy, "{seats}, {load}, {seed}: {busy} of the seats are taken");
            }
            let case = format!("{seats} seats, {load}: {alone:?} alone, {beside:?} beside");
            assert!(beside.ttft_s < 1.2 * alone.ttft_s && beside.e2e_s < 1.1 * alone.e2e_s, "{case}");
        }
    }
}

#[test]
fn of_fewer_than_8_seats_none_is_spare_unless_that_is_said() {
    // Of its half of these seats, three, the first tenant asks for 1.8.
    let of_few = |spare_seats| serve(6, 0.1125, true, spare_seats, 0);
    assert_eq!(of_few(None), of_few(Some(0)));
    let (without, with) = (of_few(None).1, of_few(Some(1)).1);
    assert!(
        without > 0.99 && with < 0.95,
        "{without} of the seats are taken without a spare one, {with} with one"
    );
    let kept =
        |spare_seats, seats| GatewayConfig { spare_seats, ..GatewayConfig::default() }.spare_seats_of(seats);
    assert_eq!([0, 7, 8, 31, 32, 63, 64, 512].map(|seats| kept(None, seats)), [0, 0, 1, 1, 1, 1, 2, 16]);
    assert_eq!([0, 1, 2, 32].map(|seats| kept(Some(3), seats)), [0, 0, 1, 3], "of few no more than half");
    assert_eq!(kept(Some(0), 512), 0);
}

#[test]
fn a_window_that_is_found_grows_past_the_seats_that_are_left_free() {
    // An upstream that makes nobody wait, and says nothing of its seats or something wrong.
    for (said, spare_seats) in [(None, None), (Some(32), Some(0)), (Some(32), None)] {
        let config = GatewayConfig { max_queue_requests: 1024, spare_seats, ..GatewayConfig::default() };
        let mut run = Run::new(config, "auto", &[1.0, 1.0], FIRST_TOKEN_S, TOKEN_S);
        if let Some(seats) = said {
            run.engine_says(seats);
        }
        for nth in 0..30_000 {
            run.until(f64::from(nth) * 0.005);
            let tokens = 100 + nth * 7919 % 440;
            run.arrive(usize::from(nth % 1000 > 0), tokens, f64::from(tokens));
            if nth % 100 == 0 {
                run.tick();
            }
        }
        assert!(run.window() > 256, "said {said:?}, spare {spare_seats:?}, found {}", run.window());
    }
}

#[test]
fn one_that_is_no_tenant_any_more_and_leaves_a_seat_holds_nobody_up() {
    let config = GatewayConfig { spare_seats: Some(1), ..GatewayConfig::default() };
    let mut run = Run::new(config, 4, &[1.0, 1.0, 1.0], FIRST_TOKEN_S, TOKEN_S);
    run.arrive(0, 50, 50.0);
    run.until(0.6);
    (0..3).for_each(|nth| run.arrive(2, 20 + 400 * nth, 10.0));
    run.arrive(1, 500, 900.0);
    assert_eq!(run.started.len(), 5, "every seat is taken");
    run.arrive(2, 20, 10.0);
    run.arrive(1, 20, 10.0);
    run.set_weights(&[(0, 1.0), (1, 1.0)]);
    run.until(1.0);
    // A seat has come free, kept for the first tenant and whoever else has less than its share.
    let lanes: Vec<_> = run.started[5..].iter().map(|it| it.lane).collect();
    assert_eq!(lanes, [1]);
}
