//! Whether a request will wait longer than it may.

/// Share of those who nearly have to wait too long for whom it does not come to that.
const COVERED: f64 = 0.98;
/// How fast the factor moves: by this share for a wait that was too long.
const STEP: f64 = 0.05;
/// The largest factor, and one over the smallest: beyond it predictions mean nothing.
const MAX_FACTOR: f64 = 4.0;
/// Those whose likely wait is above this share of the limit tell of the factor.
const NEAR: f64 = 0.5;
/// How much a refusal that the factor alone has led to counts as a wait that was short enough: refused are never seen to wait, and a
/// factor that refuses all would stay for ever.
const REFUSED: f64 = 0.2;

/// What a predicted wait is multiplied with. Those who arrive later may overtake, and predictions are off by themselves; how much, the
/// waits of those tell who were let in though their likely wait was near the limit. Each moves the factor up or down, by steps whose
/// sizes balance where one in fifty of them waits longer than the limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Overrun {
    ln_factor: f64,
}

impl Overrun {
    /// How long a request is likely to wait that is predicted to wait so long.
    pub(super) fn likely_s(self, predicted_s: f64) -> f64 {
        predicted_s * self.ln_factor.exp()
    }

    /// A request has waited so long that was let in with this prediction and limit.
    pub(super) fn note(&mut self, predicted_s: f64, limit_s: f64, waited_s: f64) {
        if self.likely_s(predicted_s) < NEAR * limit_s {
            return;
        }
        self.step(if waited_s > limit_s { COVERED } else { COVERED - 1.0 });
    }

    /// A request was refused that is predicted to wait so long.
    pub(super) fn refused(&mut self, predicted_s: f64, limit_s: f64) {
        if predicted_s <= limit_s {
            self.step((COVERED - 1.0) * REFUSED);
        }
    }

    fn step(&mut self, by: f64) {
        self.ln_factor = (self.ln_factor + STEP * by).clamp(-MAX_FACTOR.ln(), MAX_FACTOR.ln());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_waits_near_the_limit_and_stays_where_there_are_none() {
        let mut overrun = Overrun::default();
        (0..1000).for_each(|_| overrun.note(1.0, 10.0, 100.0));
        assert_eq!(overrun.likely_s(1.0), 1.0, "far from the limit it says nothing");
        (0..1000).for_each(|_| overrun.note(9.0, 10.0, 100.0));
        assert!((overrun.likely_s(1.0) - MAX_FACTOR).abs() < 1e-9);
        (0..100).for_each(|_| overrun.refused(11.0, 10.0));
        assert!((overrun.likely_s(1.0) - MAX_FACTOR).abs() < 1e-9, "refused whatever the factor is");
        (0..20_000).for_each(|_| overrun.refused(9.0, 10.0));
        assert!(overrun.likely_s(1.0) < 1.0, "nothing that refuses all lasts for ever");
        let mut overrun = Overrun::default();
        (0..5000).for_each(|_| overrun.note(9.0, 10.0, 1.0));
        // Down to where what it says is no longer near the limit.
        assert!(overrun.likely_s(9.0) < NEAR * 10.0 && overrun.likely_s(9.0) > 0.9 * NEAR * 10.0);
    }
}

#[cfg(test)]
mod overload {
    //! Thrice the load that four seats can do, in virtual time.

    use std::time::Duration;

    use super::super::virtual_run::{Run, Started};
    use crate::config::GatewayConfig;

    const SEATS: u32 = 4;
    const TOKEN_S: f64 = 0.01;
    const MEAN_TOKENS: f64 = 50.0;
    const REQUESTS: usize = 6000;
    /// Until the factor has been found.
    const WARM_UP: usize = 1500;

    /// How it went after the warm-up.
    struct Told {
        waited_s: Vec<f64>,
        refused: usize,
        served_tokens: f64,
        took_s: f64,
    }

    impl Told {
        fn of(run: &Run, warm_s: f64) -> Self {
            let started = run.started.iter().filter(|it| it.started_s > warm_s && it.waited_s() > 0.0);
            let ended = run.ended.iter().filter(|&&(at_s, _)| at_s > warm_s);
            Self {
                waited_s: started.map(Started::waited_s).collect(),
                refused: run.refused_s.iter().filter(|&&at_s| at_s >= warm_s).count(),
                served_tokens: ended.map(|&(_, tokens)| f64::from(tokens)).sum(),
                took_s: run.now_s - warm_s,
            }
        }

        /// Share of the accepted who waited longer.
        fn longer_than(&self, limit_s: f64) -> f64 {
            let longer = self.waited_s.iter().filter(|&&waited_s| waited_s > limit_s).count();
            longer as f64 / self.waited_s.len() as f64
        }
    }

    fn overloaded(policy: &str, max_wait_s: f64, informed: bool) -> Told {
        let config = GatewayConfig {
            policy: policy.into(),
            max_wait: Duration::from_secs_f64(max_wait_s),
            max_queue_requests: REQUESTS,
            ..GatewayConfig::default()
        };
        let mut run = Run::new(config, SEATS, &[], TOKEN_S, TOKEN_S);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut exponential = || -(1.0 - rng.f64()).ln();
        let mut warm_s = 0.0;
        for nth in 0..REQUESTS {
            let gap_s = exponential() * MEAN_TOKENS * TOKEN_S / f64::from(SEATS) / 3.0;
            run.until(run.now_s + gap_s);
            if nth == WARM_UP {
                warm_s = run.now_s;
            }
            let tokens = (exponential() * MEAN_TOKENS).ceil().clamp(1.0, 900.0);
            // From half of what it will be to twice of that; or of what all are.
            let off = 2.0_f64.powf(2.0 * (exponential() % 1.0) - 1.0);
            run.arrive(0, tokens as u32, off * if informed { tokens } else { MEAN_TOKENS });
        }
        Told::of(&run, warm_s)
    }

    #[test]
    fn at_thrice_the_load_those_accepted_seldom_wait_longer_than_they_may_and_no_seat_idles() {
        for (policy, informed) in [("fcfs", true), ("outrank", true), ("outrank", false)] {
            for max_wait_s in [1.0, 3.0, 10.0] {
                let told = overloaded(policy, max_wait_s, informed);
                let busy = told.served_tokens * TOKEN_S / told.took_s / f64::from(SEATS);
                let (longer, far) = (told.longer_than(max_wait_s), told.longer_than(1.5 * max_wait_s));
                let case = format!(
                    "{policy}, informed {informed}, at most {max_wait_s} s: {longer:.3} longer, {far:.3} far longer, \
                     {busy:.3} busy, {} refused",
                    told.refused
                );
                assert!(longer < 0.05, "{case}");
                assert!(far < 0.01, "{case}");
                assert!(busy > 0.97, "{case}");
            }
        }
    }
}
