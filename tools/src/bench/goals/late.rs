//! Rows on what becomes visible later: what a transaction and a delayed message cost next to a plain one, and what
//! those cost that wait.
//!
//! What a message costs is taken from the server's process, all of its threads, between two moments around a whole
//! load; both sides are the same load through the same client library.

use super::costs::{used, written};
use super::lab::{Figure, Found, Lab, Server, Side, Skip, number};
use super::rows::{Busy, demand_working_space};
use crate::bench::stats::Goal;
use std::time::Duration;

/// One message in flight on each of so many connections.
const EACH_ONE: [&str; 2] = ["--connections=128", "--in-flight=128"];
/// Bodies of which no padding is worth mentioning: whoever writes one twice is seen.
const LARGE: &str = "--record-size=16K";
/// How what waits is made: small, by a few clients that wait for each other's flushes.
const MANY: [&str; 3] = ["--connections=4", "--in-flight=512", "--record-size=128"];
/// Records a second where exactness is looked at.
const EXACT: [&str; 2] = ["--rate=1000", "--record-size=1K"];

/// What the messages of a load have cost the server.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Time of its process for each message, in microseconds.
    cpu_us: f64,
    disk_bytes: f64,
    records_s: f64,
}

/// Pairs of costs: late messages, and the same records published the ordinary way.
type Costs = Vec<(Cost, Cost)>;

fn side_of(costs: &Costs, value: fn(&Cost) -> f64) -> Vec<(f64, f64)> {
    costs.iter().map(|(late, plain)| (value(late), value(plain))).collect()
}

fn cost(
    lab: &Lab<'_>,
    server: &Server,
    bench: &str,
    args: &[String],
    busy: &mut Busy,
) -> Result<Cost, String> {
    let (cpu, disk) = (used(server)?, written(server)?);
    let report = lab.load(server, bench, args)?.finish(lab.stop)?;
    busy.note(&[&report])?;
    if let Some(why) = report["failed"].as_array().and_then(|failed| failed.first()) {
        return Err(format!("a message failed: {why}"));
    }
    let records = number(&report, "records")?.max(1.0);
    Ok(Cost {
        cpu_us: (used(server)? - cpu) * 1e6 / records,
        disk_bytes: (written(server)? - disk) / records,
        records_s: number(&report, "records_s")?,
    })
}

/// Late messages beside plain ones.
fn costs(
    lab: &mut Lab<'_>,
    server: &Server,
    bench: &str,
    extra: &[&str],
    busy: &mut Busy,
) -> Result<Costs, String> {
    let mut found = [Vec::new(), Vec::new()];
    let duration = format!("--duration={}ms", lab.time.as_millis());
    lab.pairs(|lab, side| {
        // What is not counted costs time all the same: there is no warm-up.
        let args = EACH_ONE.iter().chain(extra).copied().chain(["--warmup=0", &duration]);
        let mut args: Vec<String> = args.map(str::to_owned).collect();
        if side == Side::B {
            args.push("--plain".to_owned());
        }
        let cost = cost(lab, server, bench, &args, busy)?;
        found[side as usize].push(cost);
        Ok(cost.cpu_us)
    })?;
    let [late, plain] = found;
    Ok(late.into_iter().zip(plain).collect())
}

/// A server whose slots are recycled: it pre-writes nothing any more, and its arena was touched.
fn warm(lab: &mut Lab<'_>, name: &str) -> Result<Server, Skip> {
    demand_working_space(lab)?;
    let server = lab.server(name, Some(lab.sizes.retained))?;
    lab.fill(&server, "fill", lab.sizes.retained + 4 * lab.sizes.segment)?;
    Ok(server)
}

/// Half message and commit against a plain publish.
pub(super) fn transactions(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let server = warm(lab, "transactions")?;
    let mut busy = Busy::default();
    let small = costs(lab, &server, "transactions", &[], &mut busy)?;
    let large = costs(lab, &server, "transactions", &[LARGE], &mut busy)?;
    let cpu = side_of(&small, |cost| cost.cpu_us);
    let rates: Vec<_> = side_of(&small, |cost| cost.records_s).into_iter().map(|(a, b)| (b, a)).collect();
    let names = ("server time, half and commit", "plain");
    let figures = vec![
        Figure::ratio(names, "µs", &cpu, Goal::AtMost(2.5)),
        Figure::ratio(("the same, the tighter goal", "plain"), "µs", &cpu, Goal::AtMost(2.2)),
        Figure::ratio(("plain, closed loop", "half and commit"), "records/s", &rates, Goal::AtMost(2.2)),
        disk(&small, "disk, 1 KiB", Goal::Reported),
        disk(&large, "disk, 16 KiB", Goal::AtMost(1.3)),
    ];
    Ok(busy.found(figures, vec![ONCE.to_owned()]))
}

const ONCE: &str = "one message in flight on each of 128 connections; a body that was written twice would be 2 × \
                    with 16 KiB, while what a small one shares is the padding of its group";

fn disk(costs: &Costs, what: &'static str, goal: Goal) -> Figure {
    Figure::ratio((what, "plain"), "B", &side_of(costs, |cost| cost.disk_bytes), goal)
}

/// A delayed message, from its publishing until it is visible, against a plain publish; and how exactly it comes.
pub(super) fn delays(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let server = warm(lab, "delays")?;
    let mut busy = Busy::default();
    let delay = format!("--delay={}ms", lab.time.min(Duration::from_secs(1)).as_millis());
    let small = costs(lab, &server, "delays", &["--unread", &delay], &mut busy)?;
    let large = costs(lab, &server, "delays", &["--unread", &delay, LARGE], &mut busy)?;
    let late = lab.repeats(|lab| {
        let args: Vec<&str> = EXACT.iter().copied().chain([delay.as_str(), "--topic=exact"]).collect();
        let report = lab.load(&server, "delays", &lab.produce_args(&args))?.finish(lab.stop)?;
        Ok(number(&report, "late_us.p99")? / 1e3)
    })?;
    let cpu = side_of(&small, |cost| cost.cpu_us);
    let names = ("server time, delayed and delivered", "plain");
    let figures = vec![
        Figure::ratio(names, "µs", &cpu, Goal::AtMost(1.5)),
        Figure::ratio(("the same, the tighter goal", "plain"), "µs", &cpu, Goal::AtMost(1.3)),
        disk(&small, "disk, 1 KiB", Goal::Reported),
        disk(&large, "disk, 16 KiB", Goal::AtMost(1.3)),
        Figure::value("late by, p99 at 1,000 a second", "ms", late, Goal::AtMost(5.0)),
    ];
    Ok(busy.found(figures, vec![ONCE.to_owned()]))
}

/// What waits: memory while it was stored and after a start, and how long a start takes.
fn waiting(
    lab: &mut Lab<'_>,
    name: &str,
    (bench, extra): (&str, [String; 2]),
    count: u64,
    goal: Goal,
) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let mut server = lab.server(name, Some(lab.sizes.retained))?;
    server.stop()?;
    server.restart()?;
    let fresh = server.resident_mib("VmRSS")?;
    // Whatever is touched by storing anything at all.
    lab.fill(&server, "fill", 2 * lab.sizes.memory)?;
    let before = server.resident_mib("VmRSS")?;
    let args: Vec<String> = MANY.iter().map(|arg| (*arg).to_owned()).chain(extra).collect();
    let since = std::time::Instant::now();
    let report = lab.load(&server, bench, &args)?.finish(lab.stop)?;
    let took = since.elapsed().as_secs_f64();
    let stored = number(&report, "records")?;
    if stored != count as f64 || report["failed"].as_array().is_some_and(|failed| !failed.is_empty()) {
        return Err(Skip::Failed(format!("{stored} of {count} were stored: {}", report["failed"])));
    }
    let live = server.resident_mib("VmRSS")? - before;
    let (mut clean, mut resident) = (Vec::new(), Vec::new());
    let unclean = lab.repeats(|_| {
        server.stop()?;
        clean.push(server.restart()?);
        resident.push(server.resident_mib("VmRSS")? - fresh);
        server.kill()?;
        server.restart()
    })?;
    let each = live * 1024.0 * 1024.0 / count as f64;
    let figures = vec![
        Figure::value("more resident than before", "MiB", vec![live], goal),
        Figure::value("more resident after a start", "MiB", resident, Goal::Reported),
        Figure::value("clean start", "s", clean, Goal::Reported),
        Figure::value("start after kill -9", "s", unclean, Goal::Reported),
    ];
    let notes = vec![format!("{count} wait, stored within {took:.0} s: {each:.0} bytes each")];
    Ok(Found { figures, load_cpu_percent: None, notes })
}

/// Delayed messages that are not due for long.
pub(super) fn pending_delays(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let count = lab.sizes.pending;
    let load = ("delays", ["--delay=24h".to_owned(), format!("--pending={count}")]);
    waiting(lab, "pending", load, count, Goal::AtMost(64.0))
}

/// Half messages of transactions that nobody ends, one each.
pub(super) fn open_halves(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let count = lab.sizes.halves;
    let load = ("transactions", ["--halves=1".to_owned(), format!("--open={count}")]);
    waiting(lab, "halves", load, count, Goal::Reported)
}
