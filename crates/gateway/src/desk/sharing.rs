//! Two tenants at one upstream, in virtual time.

use super::virtual_run::{Run, Started};
use crate::config::GatewayConfig;

const SEATS: u32 = 32;
const FIRST_TOKEN_S: f64 = 0.05;
const TOKEN_S: f64 = 0.01;
const TOKENS: [u32; 4] = [8, 16, 32, 72];
const SERVICE_S: f64 = 0.36;
/// By when seats have been found, in seconds.
const FOUND_S: f64 = 20.0;

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

/// The first tenant sends so many requests a second; beside it, if wanted, a second sends ten times as much. Of so many answers one
/// comes whole.
fn send(run: &mut Run, rate: f64, beside: bool, whole_of: Option<usize>, end_s: f64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut exponential = move || -(1.0 - rng.f64()).ln();
    let second_s = if beside { run.now_s } else { f64::INFINITY };
    let mut next_s = [run.now_s + exponential() / rate, second_s];
    let mut lengths = fastrand::Rng::with_seed(seed + 1000);
    let mut ways = fastrand::Rng::with_seed(seed + 2000);
    while run.now_s < end_s {
        let lane = usize::from(next_s[1] < next_s[0]);
        run.until(next_s[lane]);
        run.tick();
        let tokens = TOKENS[lengths.usize(..4)];
        run.streams = whole_of.is_none_or(|of| ways.usize(..of) > 0);
        run.arrive(lane, tokens, f64::from(tokens));
        next_s[lane] += exponential() / (rate * [1.0, 10.0][lane]);
    }
}

/// Share of the time since then in which a seat was taken.
fn busy_since(run: &Run, since_s: f64, seats: u32) -> f64 {
    let ended = run.ended.iter().filter(|&&(at_s, _)| at_s > since_s);
    let served_s: f64 = ended.map(|&(_, tokens)| FIRST_TOKEN_S + f64::from(tokens - 1) * TOKEN_S).sum();
    served_s / f64::from(seats) / (run.now_s - since_s)
}

/// The first tenant sends `load` of what half of 32 seats can do, beside a second or not, to an engine whose seats are known. So many
/// seats are kept free, if that is said. Also tells the share of the time in which a seat was taken.
fn serve(seats: u32, load: f64, beside: bool, spare_seats: Option<u32>, seed: u64) -> (Latency, f64) {
    let config = GatewayConfig { max_queue_requests: 64, spare_seats, ..GatewayConfig::default() };
    let mut run = Run::new(config, seats, &[1.0, 1.0], FIRST_TOKEN_S, TOKEN_S);
    send(&mut run, load * f64::from(SEATS / 2) / SERVICE_S, beside, None, 200.0, seed);
    (Latency::of(&run.started), busy_since(&run, 0.0, seats))
}

/// Two tenants before an engine that says nothing of its seats.
fn unsaid(seats: u32) -> Run {
    let config = GatewayConfig { max_queue_requests: 4 * seats as usize, ..GatewayConfig::default() };
    let mut run = Run::new(config, "auto", &[1.0, 1.0], FIRST_TOKEN_S, TOKEN_S);
    run.set_engine_seats(seats);
    run
}

/// Both tenants before such an engine, once its seats have been found.
fn serve_unsaid(seats: u32, load: f64, whole_of: Option<usize>, seed: u64) -> (Latency, f64) {
    let mut run = unsaid(seats);
    let rate = load * f64::from(SEATS / 2) / SERVICE_S;
    send(&mut run, rate, true, whole_of, FOUND_S, seed);
    let before = run.started.len();
    send(&mut run, rate, true, whole_of, FOUND_S + 200.0, seed);
    (Latency::of(&run.started[before..]), busy_since(&run, FOUND_S, seats))
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
fn of_4_to_31_seats_one_is_spare_too_and_the_e2e_latency_of_a_tenant_under_its_share_is_within_a_fifth() {
    for (seats, least_busy, most_ttft, most_e2e) in
        [(4_u32, 0.82, 1.5, 1.15), (6, 0.85, 1.3, 1.15), (8, 0.88, 1.2, 1.1), (16, 0.93, 1.2, 1.1)]
    {
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
            assert!(
                beside.ttft_s < most_ttft * alone.ttft_s && beside.e2e_s < most_e2e * alone.e2e_s,
                "{case}"
            );
        }
    }
}

#[test]
fn of_fewer_than_4_seats_none_is_spare_unless_that_is_said() {
    // Of its half of these seats, one and a half, the first tenant asks for 0.9.
    let of_few = |spare_seats| serve(3, 0.056_25, true, spare_seats, 0);
    assert_eq!(of_few(None), of_few(Some(0)));
    let (without, with) = (of_few(None).1, of_few(Some(1)).1);
    assert!(
        without > 0.99 && with < 0.95,
        "{without} of the seats are taken without a spare one, {with} with one"
    );
    let kept =
        |spare_seats, seats| GatewayConfig { spare_seats, ..GatewayConfig::default() }.spare_seats_of(seats);
    assert_eq!([0, 3, 4, 31, 32, 63, 64, 512].map(|seats| kept(None, seats)), [0, 0, 1, 1, 1, 1, 2, 16]);
    assert_eq!([0, 1, 2, 32].map(|seats| kept(Some(3), seats)), [0, 0, 1, 3], "of few no more than half");
    assert_eq!(kept(Some(0), 512), 0);
}

/// What the first tenant has alone with half of the seats, beside the other where the engine says nothing, and the share of the time in
/// which a seat was taken. The load is of what half of the seats can do.
fn alone_and_unsaid(seats: u32, load: f64, whole_of: Option<usize>, seeds: u64) -> (Latency, Latency, f64) {
    let load = load * f64::from(seats) / f64::from(SEATS);
    let (mut alone, mut beside, mut busy) = (Latency::default(), Latency::default(), 0.0);
    for seed in 0..seeds {
        alone.add(&serve(seats / 2, load, false, None, seed).0);
        let (latency, busy_share) = serve_unsaid(seats, load, whole_of, seed);
        beside.add(&latency);
        busy += busy_share / seeds as f64;
    }
    (alone, beside, busy)
}

#[test]
fn before_an_engine_that_says_nothing_of_its_seats_a_tenant_under_its_share_is_within_a_fifth_too() {
    for (seats, seeds, most_ttft, least_busy) in
        [(8, 3, 1.3, 0.88), (16, 3, 1.2, 0.93), (32, 3, 1.2, 0.96), (64, 1, 1.15, 0.96), (128, 1, 1.15, 0.96)]
    {
        for load in [0.3, 0.6, 0.85] {
            let (alone, beside, busy) = alone_and_unsaid(seats, load, None, seeds);
            let case = format!("{seats} seats, {load}: {alone:?} alone, {beside:?} beside, {busy} taken");
            assert!(beside.e2e_s < 1.1 * alone.e2e_s, "{case}");
            assert!(beside.ttft_s < most_ttft * alone.ttft_s, "{case}");
            assert!(busy > least_busy, "{case}");
        }
    }
}

#[test]
fn answers_that_come_whole_hide_seats_but_leave_none_idle() {
    for (whole_of, most_e2e, least_busy) in [(10, 1.1, 0.96), (2, 1.25, 0.97), (1, f64::INFINITY, 0.97)] {
        for load in [0.3, 0.85] {
            let (alone, beside, busy) = alone_and_unsaid(SEATS, load, Some(whole_of), 3);
            let case = format!("one of {whole_of}, {load}: {alone:?} alone, {beside:?} beside, {busy} taken");
            assert!(beside.e2e_s < most_e2e * alone.e2e_s && busy > least_busy, "{case}");
        }
    }
}

#[test]
fn when_the_engine_gets_more_seats_or_starts_again_with_fewer_they_are_found_again() {
    let mut run = unsaid(SEATS);
    let rate = 0.6 * f64::from(SEATS / 2) / SERVICE_S;
    for (turn, seats) in [SEATS, SEATS / 2, 2 * SEATS, SEATS].into_iter().enumerate() {
        if seats < SEATS || turn == 3 {
            run.until(run.now_s + 60.0);
            run.engine_starts_again();
        }
        run.set_engine_seats(seats);
        let changed_s = run.now_s;
        send(&mut run, rate, true, None, changed_s + 60.0, turn as u64);
        let (since_s, before) = (run.now_s, run.started.len());
        send(&mut run, rate, true, None, since_s + 60.0, turn as u64);
        let busy = busy_since(&run, since_s, seats);
        let waiting = run.started[before..].iter().map(|it| it.started_s - it.sent_s).sum::<f64>() / 60.0;
        assert!(
            busy > 0.92 && waiting < 2.0,
            "{seats} seats: {busy} of them are taken, {waiting} wait inside"
        );
    }
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
