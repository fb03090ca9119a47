//! Rows on who is beside whom: producers while a backlog is worked off, and a quiet topic beside a noisy one.
//!
//! The load beside the one whose latency is measured shares its core and runs at the lowest priority: what is measured
//! is to wait for the server, and not for that load.

use super::lab::{Figure, Found, Lab, Side, Skip, number};
use super::rows::{BATCHED, Busy, demand_working_space, log_end};
use crate::bench::stats::Goal;
use std::time::Duration;

/// Requests of a crowd: one record each, over many connections.
const CROWD: [&str; 2] = ["--batch=1", "--connections=128"];
/// What the group may work off, in bytes a second.
const DRAIN_RATE: u64 = 50_000_000;
/// What a record of 1 KiB takes of the log when it is alone in its frame, with its share of the group: 1.25 KiB.
const ALONE_NUMERATOR: u64 = 5;
const ALONE_DENOMINATOR: u64 = 4;
/// So much earlier than the producers the group begins, and so much later it ends: it has to join first.
const AROUND: Duration = Duration::from_millis(500);
/// The quiet topic's load.
const QUIET: [&str; 4] = ["--topic=quiet", "--batch=1", "--connections=16", "--rate=1000"];

/// Producers of a crowd at half of their maximum while a rate-limited group works off a backlog, against the same
/// producers of a server without one.
pub(super) fn flash_sale(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let fastest = {
        let server = lab.server("sale-fastest", Some(lab.sizes.retained))?;
        number(&lab.produce(&server, &CROWD)?, "records_s")?
    };
    let rate = fastest / 2.0;
    // Retention takes from the front what producers add: so much lies before what the group reads.
    let side = lab.time + lab.sizes.warmup + Duration::from_secs(1);
    let published = (rate * side.as_secs_f64() * (lab.pairs + 1) as f64) as u64;
    let margin = (published << 10) * ALONE_NUMERATOR / ALONE_DENOMINATOR;
    let kept = lab.sizes.sale_backlog + margin + 2 * lab.sizes.segment;
    let drained_at_most = (side + 2 * AROUND).as_secs_f64() * lab.pairs as f64 * DRAIN_RATE as f64;
    if drained_at_most > lab.sizes.sale_backlog as f64 {
        return Err(Skip::Because(format!(
            "{:.1} GB would be worked off: --sale-backlog has to be larger than that, or the run shorter",
            drained_at_most / 1e9
        )));
    }
    lab.demand_space(kept + lab.sizes.retained + 12 * lab.sizes.segment)?;
    let without = lab.server("sale-without", Some(lab.sizes.retained))?;
    lab.fill(&without, "bench", lab.sizes.retained + 4 * lab.sizes.segment)?;
    let with = lab.server("sale", Some(kept))?;
    lab.fill(&with, "bench", kept + 4 * lab.sizes.segment)?;
    let from = log_end(&with)?.saturating_sub(lab.sizes.sale_backlog >> 10);

    let steady = [format!("--rate={rate}")];
    let steady: Vec<&str> = CROWD.iter().copied().chain(steady.iter().map(String::as_str)).collect();
    let drain = [
        "--group=sale".to_owned(),
        format!("--group-rate={DRAIN_RATE}"),
        format!("--from={from}"),
        format!("--duration={}ms", (lab.time + lab.sizes.warmup + 2 * AROUND).as_millis()),
    ];
    let mut busy = Busy::default();
    let (mut drained, mut left, mut p50) = (Vec::new(), u64::MAX, [Vec::new(), Vec::new()]);
    let cold = with.metric("ringmq_cold_reads_total")?;
    let p99 = lab.pairs(|lab, side| {
        let report = match side {
            Side::B => lab.produce(&without, &steady)?,
            Side::A => {
                let group = lab.load_behind(&with, "drain", &drain)?;
                std::thread::sleep(AROUND);
                let report = lab.produce(&with, &steady)?;
                let worked = group.finish(lab.stop)?;
                busy.note(&[&report, &worked])?;
                drained.push(number(&worked, "mb_s")?);
                left = left.min(worked["lag_records"].as_u64().unwrap_or(0));
                report
            }
        };
        p50[side as usize].push(number(&report, "latency_us.p50")?);
        number(&report, "latency_us.p99")
    })?;
    let cold = with.metric("ringmq_cold_reads_total")? - cold;
    if left == 0 {
        return Err(Skip::Failed("the backlog was worked off before the end".to_owned()));
    }
    let [beside, alone] = p50;
    let p50: Vec<_> = beside.into_iter().zip(alone).collect();
    let names = ("producers' p99, backlog worked off", "without backlog");
    let figures = vec![
        Figure::ratio(names, "µs", &p99, Goal::AtMost(1.3)),
        Figure::ratio(("their p50", "without backlog"), "µs", &p50, Goal::Reported),
        // Else the load was not what it is said to be.
        Figure::value("worked off meanwhile", "MB/s", drained, Goal::AtLeast(0.9 * DRAIN_RATE as f64 / 1e6)),
    ];
    let notes = vec![format!(
        "128 connections at {rate:.0} records/s, half of {fastest:.0}; a backlog of {:.1} GiB, never less than {:.1}, \
         {cold:.0} reads from the disk",
        lab.sizes.sale_backlog as f64 / GIB,
        (left << 10) as f64 / GIB,
    )];
    Ok(busy.found(figures, notes))
}

const GIB: f64 = (1u64 << 30) as f64;

/// A quiet topic beside a noisy one on the same shard.
pub(super) fn neighbour(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("neighbour", Some(lab.sizes.retained))?;
    lab.fill(&server, "noisy", lab.sizes.retained + 4 * lab.sizes.segment)?;
    let fastest = number(&lab.produce(&server, &["--topic=noisy", BATCHED[0], BATCHED[1]])?, "records_s")?;
    let noise = ["--topic=noisy", "--batch=1000", "--warmup=0"].map(str::to_owned);
    let forever = "--duration=600".to_owned();
    let half = format!("--rate={}", fastest / 2.0);
    let mut busy = Busy::default();
    let mut full = Vec::new();
    let p99 = lab.pairs(|lab, side| {
        let quiet = |lab: &Lab<'_>| -> Result<(f64, serde_json::Value), String> {
            let report = lab.produce(&server, &QUIET)?;
            Ok((number(&report, "latency_us.p99")?, report))
        };
        if side == Side::B {
            return quiet(lab).map(|found| found.0);
        }
        let beside = |lab: &Lab<'_>, how: &str| {
            let args: Vec<String> = noise.iter().cloned().chain([forever.clone(), how.to_owned()]).collect();
            let noise = lab.load_behind(&server, "produce", &args)?;
            std::thread::sleep(lab.sizes.warmup.min(AROUND));
            let found = quiet(lab);
            drop(noise); // It is killed: only what it did to the other is of interest.
            found
        };
        full.push(beside(lab, BATCHED[1])?.0);
        let (p99, report) = beside(lab, &half)?;
        busy.note(&[&report])?;
        Ok(p99)
    })?;
    let full: Vec<_> = full.into_iter().zip(&p99).map(|(beside, (_, alone))| (beside, *alone)).collect();
    let figures = vec![
        Figure::ratio(("quiet p99, noise at half", "alone"), "µs", &p99, Goal::AtMost(1.5)),
        Figure::ratio(("quiet p99, noise at its maximum", "alone"), "µs", &full, Goal::Reported),
    ];
    let notes = vec![format!(
        "quiet: 1,000 records/s over 16 connections; noisy: 1 KiB × 1,000 at {:.0} records/s, half of {fastest:.0}, and \
         as fast as it goes, 4 in flight",
        fastest / 2.0
    )];
    Ok(busy.found(figures, notes))
}
