//! `ringmq bench compare A B`: is B better than A, or is it the weather?
//!
//! A and B are results of the same benches, several runs each, best taken in turn (A B B A …). For each figure of each
//! shape the median of the ratios B : A is shown with its 95 % bootstrap interval, and only an interval that lies on one
//! side of the bound decides.

use super::results::{METRICS, Metric, Run, read};
use super::stats::Interval;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::path::PathBuf;

/// With fewer an interval says nothing.
const RUNS_MIN: usize = 5;
/// With fewer it should not be quoted.
const RUNS_GOOD: usize = 10;

const EXAMPLES: &str = "\
Examples:
  ringmq bench produce --json >> a.jsonl     ... several times, in turn with another build's >> b.jsonl
  ringmq bench compare a.jsonl b.jsonl
  ringmq bench compare before/ after/ --bound 5

A file has one or more results, a directory many. Runs of the same shape are compared: one by one if both sides have
as many (so take them in turn), else by their medians.
Exit codes: 0 nothing got worse, 1 something did, or nothing could be compared, 2 wrong use.";

/// Say whether results B differ from results A by more than noise.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompareArgs {
    /// Results to compare with: a file or a directory.
    a: PathBuf,
    /// Results to judge.
    b: PathBuf,
    /// Difference that is of interest, in per cent: what lies wholly inside is the same.
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    bound: f64,
}

impl CompareArgs {
    /// What can be known to be wrong before anything is read.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.bound.is_finite() && (0.0..100.0).contains(&self.bound) {
            return Ok(());
        }
        Err("--bound is 0 to 100 per cent".to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Better,
    Worse,
    Same,
    NotShown,
    TooFewRuns,
}

impl Verdict {
    fn of(interval: Interval, metric: Metric, bound: f64) -> Self {
        if interval.n < RUNS_MIN {
            return Self::TooFewRuns;
        }
        let (low, high) = (1.0 - bound, 1.0 + bound);
        let (more, less) = (interval.low > high, interval.high < low);
        match (more, less, metric.more_is_better) {
            (true, _, true) | (_, true, false) => Self::Better,
            (true, _, false) | (_, true, true) => Self::Worse,
            _ if interval.low >= low && interval.high <= high => Self::Same,
            _ => Self::NotShown,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
            Self::NotShown => "not shown",
            Self::TooFewRuns => "too few runs",
        }
    }
}

/// One figure of one shape.
#[derive(Debug, Serialize)]
struct Line {
    shape: String,
    metric: &'static str,
    unit: &'static str,
    /// Medians.
    a: f64,
    b: f64,
    runs_a: usize,
    runs_b: usize,
    /// One by one, or by their medians.
    paired: bool,
    /// B to A.
    ratio: Interval,
    verdict: Verdict,
    /// In some run the load generator was the limit.
    generator_bound: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    bound_percent: f64,
    lines: Vec<Line>,
    /// Shapes that only one side has.
    unmatched: Vec<String>,
}

pub(super) fn run(args: &CompareArgs, json: bool) -> Result<u8, String> {
    let report = compare(&read(&args.a)?, &read(&args.b)?, args.bound / 100.0);
    if report.lines.is_empty() {
        return Err("the two have no shape and no figure in common".to_owned());
    }
    super::print_line(&if json {
        serde_json::to_string(&report).map_err(|e| e.to_string())?
    } else {
        table(&report)
    });
    Ok(u8::from(report.lines.iter().any(|line| line.verdict == Verdict::Worse)))
}

fn compare(a: &[Run], b: &[Run], bound: f64) -> Report {
    let mut shapes: Vec<String> = Vec::new();
    for run in a.iter().chain(b) {
        let shape = run.shape();
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    let mut report =
        Report { bench: "compare", bound_percent: bound * 100.0, lines: Vec::new(), unmatched: Vec::new() };
    for shape in shapes {
        let of = |runs: &[Run]| runs.iter().filter(|run| run.shape() == shape).cloned().collect::<Vec<_>>();
        let (a, b) = (of(a), of(b));
        let Some(label) = a.first().or(b.first()).map(Run::label) else { continue };
        if a.is_empty() || b.is_empty() {
            report.unmatched.push(label);
            continue;
        }
        let bound_by_generator = |run: &Run| run.value["generator_bound"] == true;
        let generator_bound = a.iter().chain(&b).any(bound_by_generator);
        for metric in METRICS {
            let values = |runs: &[Run]| {
                let found = runs.iter().filter_map(|run| run.number(metric.name));
                found.filter(|value| *value > 0.0).collect::<Vec<_>>()
            };
            let (a, b) = (values(&a), values(&b));
            if a.is_empty() || b.is_empty() {
                continue;
            }
            let paired = a.len() == b.len();
            let ratio = if paired {
                Interval::of(&a.iter().zip(&b).map(|(a, b)| b / a).collect::<Vec<_>>())
            } else {
                Interval::of_medians(&b, &a)
            };
            report.lines.push(Line {
                shape: label.clone(),
                metric: metric.name,
                unit: metric.unit,
                a: Interval::of(&a).median,
                b: Interval::of(&b).median,
                runs_a: a.len(),
                runs_b: b.len(),
                paired,
                ratio,
                verdict: Verdict::of(ratio, metric, bound),
                generator_bound,
            });
        }
    }
    report
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "shape",
        "figure",
        "A",
        "B",
        "B : A, median [95 %]",
        "verdict",
    ]);
    let mut shape = "";
    for line in &report.lines {
        let unit = |value: f64| format!("{} {}", short(value), line.unit).trim_end().to_owned();
        let Interval { median, low, high, .. } = line.ratio;
        let mut verdict = line.verdict.text().to_owned();
        if line.generator_bound {
            verdict += " (generator-bound)";
        }
        table.add_row([
            if shape == line.shape { String::new() } else { line.shape.clone() },
            line.metric.to_owned(),
            unit(line.a),
            unit(line.b),
            format!("{median:.3} [{low:.3}, {high:.3}]"),
            verdict,
        ]);
        shape = &line.shape;
    }
    for column in 2..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt();
    let counts: Vec<usize> = report.lines.iter().flat_map(|line| [line.runs_a, line.runs_b]).collect();
    let (least, most) =
        (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
    text += &format!(
        "\n{least} to {most} runs a side; what lies within {} % is the same",
        short(report.bound_percent)
    );
    if report.lines.iter().any(|line| !line.paired) {
        text +=
            "\nnot as many runs on both sides: their medians are compared, and a drift of the machine counts";
    }
    if least < RUNS_GOOD {
        text += &format!("\nfewer than {RUNS_GOOD} runs: take more before quoting this");
    }
    for shape in &report.unmatched {
        text += &format!("\nonly on one side: {shape}");
    }
    text
}

fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runs(rates: &[f64], p99: f64) -> Vec<Run> {
        let run = |rate: &f64| {
            let value =
                json!({"bench": "produce", "batch": 10, "records_s": rate, "latency_us": {"p99": p99}});
            Run { value }
        };
        rates.iter().map(run).collect()
    }

    fn verdicts(report: &Report) -> Vec<(&str, Verdict)> {
        report.lines.iter().map(|line| (line.metric, line.verdict)).collect()
    }

    #[test]
    fn a_difference_beyond_the_noise_is_found_and_noise_is_not() {
        let a = [100.0, 104.0, 97.0, 101.0, 99.0, 103.0, 98.0, 100.0, 102.0, 96.0];
        let scaled = |by: f64| a.map(|rate| rate * by);
        let base = runs(&a, 100.0);
        let better = compare(&base, &runs(&scaled(1.1), 80.0), 0.02);
        assert_eq!(verdicts(&better), [("records_s", Verdict::Better), ("latency_us.p99", Verdict::Better)]);
        let worse = compare(&base, &runs(&scaled(0.9), 120.0), 0.02);
        assert_eq!(verdicts(&worse), [("records_s", Verdict::Worse), ("latency_us.p99", Verdict::Worse)]);
        let same = compare(&base, &runs(&scaled(1.001), 100.0), 0.02);
        assert_eq!(verdicts(&same), [("records_s", Verdict::Same), ("latency_us.p99", Verdict::Same)]);
        // The same values in another order: pairs differ by up to 8 %, their median by nothing that can be shown.
        let mut shuffled = a;
        shuffled.rotate_left(3);
        let noise = compare(&base, &runs(&shuffled, 100.0), 0.02);
        assert_eq!(noise.lines[0].verdict, Verdict::NotShown, "{:?}", noise.lines[0].ratio);
        let uneven = compare(&base, &runs(&scaled(1.1)[..7], 100.0), 0.02);
        assert_eq!((uneven.lines[0].verdict, uneven.lines[0].paired), (Verdict::Better, false));
        let few = compare(&base[..3], &runs(&scaled(2.0)[..3], 50.0), 0.02);
        assert!(few.lines.iter().all(|line| line.verdict == Verdict::TooFewRuns));
        assert!(table(&few).contains("fewer than 10 runs"));
    }

    #[test]
    fn only_equal_shapes_are_compared() {
        let a = runs(&[1.0; 5], 1.0);
        let mut b = a.clone();
        for run in &mut b {
            run.value["batch"] = json!(20);
        }
        let report = compare(&a, &b, 0.02);
        assert!(report.lines.is_empty());
        assert_eq!(report.unmatched.len(), 2);
    }
}
