//! Rows on readers: what is in memory, what goes to many, what is cold.

use super::lab::{Figure, Found, Lab, Side, Skip, number};
use super::rows::{Busy, demand_working_space, log_start};
use crate::bench::stats::Goal;
use std::time::Duration;

/// Of the log's arena so much is read as the tail, so that nothing of it is cold.
const TAIL_SHARE: u64 = 4;

/// One consumer of what is still in the arena.
pub(super) fn tail_consume(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("tail", Some(lab.sizes.retained))?;
    lab.fill(&server, "bench", lab.sizes.memory / TAIL_SHARE)?;
    let limits = lab.limits()?;
    let mut busy = Busy::default();
    let before = server.metric("ringmq_cold_reads_total")?;
    let pairs = lab.pairs(|lab, side| match side {
        Side::A => {
            let time = format!("--duration={}ms", lab.time.as_millis());
            let args = ["--from=earliest".to_owned(), "--again".to_owned(), time];
            let report = lab.load(&server, "consume", &args)?.finish(lab.stop)?;
            busy.note(&[&report])?;
            number(&report, "mb_s")
        }
        Side::B => limits.copy_mb_s(lab.time),
    })?;
    let cold = server.metric("ringmq_cold_reads_total")? - before;
    let notes = vec![format!(
        "{} MiB in the arena, read over and over; {cold:.0} reads from the disk meanwhile",
        (lab.sizes.memory / TAIL_SHARE) >> 20
    )];
    let figure = Figure::ratio(("tail, one consumer", "loopback copy"), "MB/s", &pairs, Goal::AtLeast(0.8));
    Ok(busy.found(vec![figure], notes))
}

/// Many subscribers of one partition.
pub(super) fn fan_out(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("fan-out", Some(lab.sizes.retained))?;
    let limits = lab.limits()?;
    let mut busy = Busy::default();
    let subscribers = lab.sizes.subscribers;
    let (mut stored, mut appended) = (0.0, 0.0);
    let pairs = lab.pairs(|lab, side| match side {
        Side::A => {
            let load = [
                "--batch=100".to_owned(),
                "--in-flight=4".to_owned(),
                format!("--subscribers={subscribers}"),
            ];
            let load: Vec<&str> = load.iter().map(String::as_str).collect();
            let before = server.metric("ringmq_records_appended_total")?;
            let report = lab.load(&server, "fan-out", &lab.produce_args(&load))?.finish(lab.stop)?;
            appended += server.metric("ringmq_records_appended_total")? - before;
            stored += number(&report, "records")?;
            busy.note_all(&report, &["load_cpu_percent", "subscribers_cpu_percent"])?;
            number(&report, "delivered_mb_s")
        }
        Side::B => limits.copy_mb_s(lab.time),
    })?;
    let names = ("delivered to all", "loopback copy");
    let figures = vec![Figure::ratio(names, "MB/s", &pairs, Goal::AtLeast(0.7))];
    let notes = vec![format!(
        "{subscribers} subscribers; {appended:.0} records were appended, warm-ups included, for {stored:.0} counted ones: \
         one stored copy"
    )];
    Ok(busy.found(figures, notes))
}

/// A consumer of a cold backlog with nobody beside it.
pub(super) fn cold_alone(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let kept = lab.sizes.backlog + 2 * lab.sizes.segment;
    lab.demand_space(kept + 8 * lab.sizes.segment + lab.sizes.floor_file)?;
    let server = lab.server("cold-alone", Some(kept))?;
    lab.fill(&server, "bench", kept)?;
    let mut limits = lab.limits()?;
    let mut busy = Busy::default();
    let before = server.metric("ringmq_cold_reads_total")?;
    let pairs = lab.pairs(|lab, side| match side {
        Side::A => {
            let from = format!("--from={}", log_start(&server)?);
            let time = format!("--duration={}ms", lab.time.max(Duration::from_millis(1)).as_millis());
            let report = lab.load(&server, "consume", &[from, time])?.finish(lab.stop)?;
            busy.note(&[&report])?;
            number(&report, "mb_s")
        }
        Side::B => limits.cold_read_mb_s(lab.time),
    })?;
    let cold = server.metric("ringmq_cold_reads_total")? - before;
    let names = ("cold backlog, one partition", "direct read, or copy");
    let figures = vec![Figure::ratio(names, "MB/s", &pairs, Goal::AtLeast(0.7))];
    Ok(busy.found(figures, vec![format!("{cold:.0} reads from the disk")]))
}
