//! What is said of N values: their median, and in which interval it would lie were they drawn again.

use serde::Serialize;

/// Times that the values are drawn again.
const RESAMPLES: usize = 10_000;
/// Outside on each side, of 1: 95 % are inside.
const TAIL: f64 = 0.025;

/// A median, its 95 % bootstrap interval, and the spread of the values themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Interval {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) n: usize,
}

impl Interval {
    /// Of values in any order. The draws are the same each time: equal values give an equal interval.
    pub(super) fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return Self::default() };
        let mut draws = Draws::new();
        let (low, high) = inside(|| draws.median(&sorted));
        Self { median: median(&sorted), low, high, min: *min, max: *max, n: sorted.len() }
    }

    /// Of the median of `a` to that of `b`, where no value of one belongs to one of the other. `n` is the smaller number.
    pub(super) fn of_medians(a: &[f64], b: &[f64]) -> Self {
        let (a, b) = (sorted(a), sorted(b));
        let n = a.len().min(b.len());
        if n == 0 {
            return Self::default();
        }
        let mut draws = Draws::new();
        let (low, high) = inside(|| draws.median(&a) / draws.median(&b));
        let (min, max) = (a[0] / b[b.len() - 1], a[a.len() - 1] / b[0]);
        Self { median: median(&a) / median(&b), low, high, min, max, n }
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Draws values again, always the same ones.
struct Draws {
    state: u64,
    sample: Vec<f64>,
}

impl Draws {
    fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, sample: Vec::new() }
    }

    fn median(&mut self, values: &[f64]) -> f64 {
        let state = &mut self.state;
        self.sample.resize(values.len(), 0.0);
        self.sample.fill_with(|| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            values[(*state % values.len() as u64) as usize]
        });
        self.sample.sort_by(f64::total_cmp);
        median(&self.sample)
    }
}

/// Ends of the 95 % of what is drawn.
fn inside(draw: impl FnMut() -> f64) -> (f64, f64) {
    let drawn = sorted(&std::iter::repeat_with(draw).take(RESAMPLES).collect::<Vec<_>>());
    let outside = (RESAMPLES as f64 * TAIL) as usize;
    (drawn[outside], drawn[RESAMPLES - 1 - outside])
}

/// Of sorted values; of an even number the mean of the middle two.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

/// What is promised of a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
    /// Nothing is promised: it is only said.
    Reported,
}

impl Goal {
    pub(super) fn text(self) -> String {
        match self {
            Self::AtLeast(bound) => format!("≥ {bound}"),
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::Below(bound) => format!("< {bound}"),
            Self::Reported => String::new(),
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
            Self::Reported => true,
        }
    }

    /// Only a whole interval on one side decides.
    pub(super) fn judge(self, interval: Interval) -> Verdict {
        match (self.holds(interval.low), self.holds(interval.high)) {
            _ if interval.n == 0 => Verdict::NotShown,
            _ if matches!(self, Self::Reported) => Verdict::Reported,
            (true, true) => Verdict::Reached,
            (false, false) => Verdict::Missed,
            _ => Verdict::NotShown,
        }
    }
}

/// What the measurement shows. In the order of badness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Reported,
    Reached,
    NotShown,
    Missed,
}

impl Verdict {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Reached => "reached",
            Self::NotShown => "not shown",
            Self::Missed => "missed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_more_values() {
        let few = Interval::of(&[1.0, 3.0, 2.0, 4.0]);
        assert_eq!((few.median, few.min, few.max, few.n), (2.5, 1.0, 4.0, 4));
        assert!(few.low >= 1.0 && few.low < 2.5 && few.high > 2.5 && few.high <= 4.0, "{few:?}");
        let many: Vec<f64> = (0..400).map(|i| f64::from(i % 4) + 1.0 + f64::from(i) * 1e-6).collect();
        let many = Interval::of(&many);
        assert!(many.high - many.low < few.high - few.low, "{many:?}");
        assert_eq!(
            Interval::of(&[7.0]),
            Interval { median: 7.0, low: 7.0, high: 7.0, min: 7.0, max: 7.0, n: 1 }
        );
    }

    #[test]
    fn medians_of_unlike_numbers_of_values_are_compared() {
        let ratio = Interval::of_medians(&[2.0, 2.2, 1.8, 2.1, 1.9], &[1.0, 1.1, 0.9]);
        assert_eq!((ratio.median, ratio.n), (2.0, 3));
        assert!(ratio.low < 2.0 && ratio.high > 2.0 && ratio.low > ratio.min - 1e-9, "{ratio:?}");
        assert_eq!(Interval::of_medians(&[], &[1.0]), Interval::default());
    }

    #[test]
    fn only_a_whole_interval_decides() {
        let interval =
            |low, high| Interval { median: f64::midpoint(low, high), low, high, min: low, max: high, n: 9 };
        for (goal, low, high, verdict) in [
            (Goal::AtLeast(0.5), 0.5, 0.9, Verdict::Reached),
            (Goal::AtLeast(0.5), 0.4, 0.9, Verdict::NotShown),
            (Goal::AtLeast(0.5), 0.1, 0.49, Verdict::Missed),
            (Goal::AtMost(1.5), 1.0, 1.5, Verdict::Reached),
            (Goal::AtMost(1.5), 1.0, 1.6, Verdict::NotShown),
            (Goal::AtMost(1.5), 1.6, 1.7, Verdict::Missed),
            (Goal::Below(0.05), 0.05, 0.06, Verdict::Missed),
            (Goal::Reported, 0.05, 0.06, Verdict::Reported),
        ] {
            assert_eq!(goal.judge(interval(low, high)), verdict, "{goal:?} {low} {high}");
        }
        assert_eq!(Goal::AtMost(1.0).judge(Interval::default()), Verdict::NotShown);
    }
}
