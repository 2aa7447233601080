use crate::{Key, Policy, RequestView};

/// First come, first served: `key = arrival`.
///
/// What every engine does by default. Fair in order and free of prediction; it hurts short requests, which wait
/// behind long ones (head-of-line blocking), and with them the mean.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Fcfs;

impl Policy for Fcfs {
    fn name(&self) -> &'static str {
        "fcfs"
    }

    fn key(&self, view: &RequestView<'_>) -> Key {
        Key::new(view.request.arrival.secs_f64())
    }

    fn why(&self, _view: &RequestView<'_>) -> String {
        "first come, first served: earlier arrivals go first".into()
    }
}
