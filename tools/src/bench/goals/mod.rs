//! `ringmq bench goals`: measures everything that RingMQ promises, so that anyone can check.
//!
//! What is compared is measured in turn, A B B A …, on a server of its own, and judged by the median of the ratios
//! of the pairs: a figure taken alone says more about the minute than about the server. A goal counts as reached or
//! missed only if the whole 95 % interval of that median lies on one side of it.

mod costs;
mod crowd;
mod lab;
mod late;
mod punts;
mod readers;
mod resident;
mod rows;

use super::floor::Machine;
use super::machine::{LOAD_QUIET, facts};
use super::report::parse_size;
use super::stats::Verdict;
use super::{cpu, print_line};
use crate::child::Workspace;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use lab::{Figure, Found, INTERRUPTED, Lab, Sizes, Skip};
use rows::Row;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// As shells say it of a process that SIGINT ended.
const EXIT_INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  ringmq bench goals --list
  ringmq bench goals --data /var/lib --out goals.json
  ringmq bench goals --row one-in-flight many-partitions --pairs 20
  ringmq bench goals --tiny --pairs 2 --seconds 0.2       does the bench itself work here?

It starts servers of its own on a temporary directory in --data, which is removed at the end, also on Ctrl-C.
The rows on a cold backlog, on starts and flash-sale need 12 to 30 GiB there and say so where there is less.
A row is reached, or missed, if the whole 95 % interval of its median is on that side of the goal; else not shown.
Exit codes: 0 no row was missed, 1 one was, or could not be measured, 2 wrong use, 130 interrupted.";

/// Measure everything that RingMQ promises, and say which promises hold here.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct GoalsArgs {
    /// Pairs of measurements for each figure.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pairs: u16,
    /// Time of each side of a pair.
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Only these rows [default: all].
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    row: Vec<Row>,
    /// Directory on the disk to measure.
    #[arg(long, value_name = "DIR", default_value = ".")]
    data: PathBuf,
    /// Say what the rows are, and measure nothing.
    #[arg(long)]
    list: bool,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Core for the servers [default: the first].
    #[arg(long, value_name = "CORE")]
    server_cpu: Option<usize>,
    /// Core for the load [default: the second].
    #[arg(long, value_name = "CORE")]
    load_cpu: Option<usize>,
    /// Backlog of the row `flash-sale` [default: 10G].
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    sale_backlog: Option<usize>,
    /// Tiny sizes, to try the bench itself out: its verdicts mean nothing.
    #[arg(long, visible_alias = "quick")]
    tiny: bool,
}

impl GoalsArgs {
    /// What can be known to be wrong before anything is started.
    pub(super) fn check(&self) -> Result<(), String> {
        if !(self.seconds.is_finite() && self.seconds >= 0.1 && self.seconds <= 600.0) {
            return Err("--seconds is 0.1 to 600".to_owned());
        }
        let allowed = cpu::allowed_cores();
        for (name, core) in [("--server-cpu", self.server_cpu), ("--load-cpu", self.load_cpu)] {
            if core.is_some_and(|core| !allowed.contains(&core)) {
                return Err(format!("{name}: this process may use the cores {allowed:?}"));
            }
        }
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        let sizes = if self.tiny { Sizes::TINY } else { Sizes::FULL };
        let sale_backlog = self.sale_backlog.map_or(sizes.sale_backlog, |bytes| bytes as u64);
        Sizes { sale_backlog, ..sizes }
    }

    fn rows(&self) -> Vec<Row> {
        Row::ALL.into_iter().filter(|row| self.row.is_empty() || self.row.contains(row)).collect()
    }
}

/// Everything that was found.
#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    warnings: Vec<String>,
    pairs: u16,
    seconds: f64,
    tiny: bool,
    rows: Vec<RowReport>,
}

/// One row.
#[derive(Serialize)]
struct RowReport {
    row: Row,
    about: &'static str,
    /// The worst of its figures'; none if it was not measured.
    verdict: Option<Verdict>,
    #[serde(flatten)]
    found: Found,
    generator_bound: bool,
    /// Why it was not measured.
    skipped: Option<String>,
    /// What went wrong while it was measured.
    failed: Option<String>,
}

/// How a run ended, as an exit code.
pub(super) fn run(args: GoalsArgs, json: bool) -> Result<u8, String> {
    if args.list {
        list(json);
        return Ok(0);
    }
    let stop = Arc::new(AtomicBool::new(false));
    watch_signals(&stop)?;
    let report = measure(&args, !json, &stop)?;
    let text = serde_json::to_string(&report).map_err(|e| e.to_string())?;
    if let Some(path) = &args.out {
        std::fs::write(path, &text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    print_line(&if json { text } else { table(&report) });
    if stop.load(Ordering::Relaxed) {
        return Ok(EXIT_INTERRUPTED);
    }
    let bad = |row: &RowReport| row.failed.is_some() || row.verdict == Some(Verdict::Missed);
    Ok(u8::from(report.rows.iter().any(bad)))
}

fn list(json: bool) {
    for row in Row::ALL {
        print_line(&if json {
            serde_json::json!({"row": row.name(), "about": row.about()}).to_string()
        } else {
            format!("{:<18} {}", row.name(), row.about())
        });
    }
}

/// SIGINT and SIGTERM end the step that is being measured, and then everything in order.
fn watch_signals(stop: &Arc<AtomicBool>) -> Result<(), String> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot watch signals: {e}"))?;
    let stop = Arc::clone(stop);
    let (ready, registered) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            let signals =
                signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
            match signals {
                Ok((mut interrupt, mut terminate)) => {
                    let _ = ready.send(Ok(()));
                    tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
                    stop.store(true, Ordering::Relaxed);
                }
                Err(error) => {
                    let _ = ready.send(Err(format!("cannot watch signals: {error}")));
                }
            }
        });
    });
    registered.recv().unwrap_or_else(|_| Err("cannot watch signals".to_owned()))
}

fn measure(args: &GoalsArgs, show: bool, stop: &AtomicBool) -> Result<Report, String> {
    let allowed = cpu::allowed_cores();
    let server_cpu = args.server_cpu.unwrap_or(allowed[0]);
    let others = || allowed.iter().copied().find(|core| *core != server_cpu);
    let load_cpu = args.load_cpu.or_else(others).unwrap_or(server_cpu);
    let workspace =
        Workspace::new("ringmq-goals-", Some(&args.data)).map_err(|failure| failure.to_string())?;
    let machine = facts(workspace.path(), server_cpu, load_cpu);
    let rows = args.rows();
    let progress = Progress::new(show);
    let step = |pair: usize| progress.pair(pair);
    let mut lab = Lab {
        pairs: usize::from(args.pairs),
        time: Duration::from_secs_f64(args.seconds),
        sizes: args.sizes(),
        server_cpu,
        load_cpu,
        directory: workspace.path(),
        stop,
        step: &step,
        stored: None,
    };
    progress.plan(&rows, &lab);
    let mut report = Report {
        bench: "goals",
        warnings: warnings(&machine, args.tiny),
        machine,
        pairs: args.pairs,
        seconds: args.seconds,
        tiny: args.tiny,
        rows: Vec::new(),
    };
    for row in rows {
        progress.row(row, &lab);
        let mut line = RowReport {
            row,
            about: row.about(),
            verdict: None,
            found: Found::default(),
            generator_bound: false,
            skipped: None,
            failed: None,
        };
        match row.measure(&mut lab) {
            Ok(found) => {
                line.verdict = found.figures.iter().map(|figure| figure.verdict).max();
                line.generator_bound = found.generator_bound();
                line.found = found;
            }
            // Whatever failed behind a signal failed because of it.
            Err(_) if stop.load(Ordering::Relaxed) => line.failed = Some(INTERRUPTED.to_owned()),
            Err(Skip::Because(why)) => line.skipped = Some(why),
            Err(Skip::Failed(why)) => line.failed = Some(why),
        }
        report.rows.push(line);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    progress.finish();
    drop(lab);
    workspace.close(false).map_err(|failure| failure.to_string())?;
    Ok(report)
}

fn warnings(machine: &Machine, tiny: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    if machine.load_before > LOAD_QUIET {
        warnings.push(format!(
            "the machine was busy before the start (load {:.2}): pairs share its noise, but expect wide intervals",
            machine.load_before
        ));
    }
    if machine.server_core == machine.load_core {
        warnings.push(format!(
            "server and load share core {}: every figure is that of both",
            machine.server_core
        ));
    }
    if machine.cores == 1 {
        warnings.push("there is only one CPU".to_owned());
    }
    if tiny {
        warnings.push("tiny sizes: these verdicts mean nothing".to_owned());
    }
    warnings
}

/// Row, pair and time left, on stderr where that is a terminal.
struct Progress {
    bar: ProgressBar,
    /// Milliseconds before the row, before its first pair, of a pair; and the row's name.
    row: std::cell::Cell<(u64, u64, u64, &'static str, usize)>,
    planned: std::cell::Cell<u64>,
}

impl Progress {
    fn new(show: bool) -> Self {
        let bar = if show { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{msg:<34} {bar:30} about {eta} left") {
            bar.set_style(style);
        }
        Self { bar, row: (0, 0, 0, "", 0).into(), planned: 0.into() }
    }

    fn cost(row: Row, lab: &Lab<'_>) -> (u64, u64) {
        let (pair, before) = row.estimate(lab);
        (pair.as_millis() as u64, before.as_millis() as u64)
    }

    fn plan(&self, rows: &[Row], lab: &Lab<'_>) {
        let total = rows.iter().map(|row| {
            let (pair, before) = Self::cost(*row, lab);
            before + pair * lab.pairs as u64
        });
        self.bar.set_length(total.sum());
        self.bar.enable_steady_tick(Duration::from_millis(500));
    }

    fn row(&self, row: Row, lab: &Lab<'_>) {
        let (pair, before) = Self::cost(row, lab);
        let begin = self.planned.get();
        self.planned.set(begin + before + pair * lab.pairs as u64);
        self.row.set((begin, before, pair, row.name(), lab.pairs));
        self.bar.set_position(begin);
        self.bar.set_message(format!("{}: making ready", row.name()));
    }

    fn pair(&self, done: usize) {
        let (begin, before, pair, name, pairs) = self.row.get();
        self.bar.set_position(begin + before + pair * done as u64);
        self.bar.set_message(format!("{name}: pair {} of {pairs}", (done + 1).min(pairs)));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A number with about three figures.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn cells(row: &RowReport, figure: &Figure, first: bool) -> [String; 7] {
    let with_unit = |value: f64| format!("{} {}", short(value), figure.unit).trim_end().to_owned();
    let ratio = figure.ratio;
    let mut verdict = figure.verdict.text().to_owned();
    if row.generator_bound {
        verdict += " (generator-bound)";
    }
    let b = figure.b.map_or_else(String::new, |b| format!("{}, {}", with_unit(b), figure.b_what));
    [
        if first { row.row.name().to_owned() } else { String::new() },
        format!("{}, {}", with_unit(figure.a), figure.what),
        b,
        format!("{} [{}, {}] of {}", short(ratio.median), short(ratio.low), short(ratio.high), ratio.n),
        figure.goal.text(),
        verdict,
        row.found.load_cpu_percent.map_or_else(String::new, |percent| format!("{percent:.0} %")),
    ]
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "row",
        "A",
        "B",
        "A : B, median [95 %]",
        "goal",
        "verdict",
        "load's core",
    ]);
    for row in &report.rows {
        for (index, figure) in row.found.figures.iter().enumerate() {
            table.add_row(cells(row, figure, index == 0));
        }
        let why = row.skipped.as_ref().map(|why| format!("skipped: {why}"));
        if let Some(why) = why.or_else(|| row.failed.as_ref().map(|why| format!("failed: {why}"))) {
            table.add_row([row.row.name(), &why]);
        }
    }
    if let Some(column) = table.column_mut(6) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let machine = &report.machine;
    let mut text = format!(
        "kernel {}, {}, {} cores (server on {}, load on {}), load {:.2} before; {} pairs of {} s a side, A B B A\n{}",
        machine.kernel,
        machine.filesystem,
        machine.cores,
        machine.server_core,
        machine.load_core,
        machine.load_before,
        report.pairs,
        report.seconds,
        table.trim_fmt(),
    );
    for row in &report.rows {
        for note in &row.found.notes {
            text += &format!("\n{}: {note}", row.row.name());
        }
    }
    for warning in &report.warnings {
        text += &format!("\nwarning: {warning}");
    }
    text
}
