//! Rows on what can be counted: system calls, bytes on the disk, an idle server's time.

use super::lab::{Figure, Found, Lab, Server, Skip};
use super::rows::{BATCHED, Busy, demand_working_space};
use crate::bench::stats::Goal;

/// Clock ticks of /proc/PID/stat in a second, on every Linux.
const TICKS: f64 = 100.0;

/// `io_uring_enter` per record, batched and with one record a request.
pub(super) fn syscalls(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("syscalls", Some(lab.sizes.retained))?;
    let mut busy = Busy::default();
    let mut count = |lab: &mut Lab<'_>, load: &[&str]| {
        lab.repeats(|lab| {
            let counts = || -> Result<[f64; 2], String> {
                Ok([
                    server.metric("ringmq_ring_enters_total")?,
                    server.metric("ringmq_records_appended_total")?,
                ])
            };
            let before = counts()?;
            // At its end every request was answered: what was appended was acknowledged.
            let report = lab.produce(&server, load)?;
            let after = counts()?;
            busy.note(&[&report])?;
            Ok((after[0] - before[0]) / (after[1] - before[1]).max(1.0))
        })
    };
    let batched = count(lab, &BATCHED)?;
    let one = count(lab, &["--topic=one", "--batch=1", "--record-size=128", "--connections=128"])?;
    let figures = vec![
        Figure::value("io_uring_enter per record, batched", "", batched, Goal::Below(0.02)),
        Figure::value("128 connections, one record a request", "", one, Goal::Below(1.0)),
    ];
    Ok(busy.found(figures, Vec::new()))
}

/// What the process has written to the disk since its start, in bytes.
pub(super) fn written(server: &Server) -> Result<f64, String> {
    let path = format!("/proc/{}/io", server.pid());
    let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.trim().parse().ok()).ok_or_else(|| format!("{path} has no write_bytes"))
}

/// Bytes on the disk for each byte of a small record, once slots are recycled and nothing is pre-written any more.
pub(super) fn disk_bytes(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("disk-bytes", Some(lab.sizes.retained))?;
    lab.fill(&server, "fill", lab.sizes.retained + 4 * lab.sizes.segment)?;
    let mut busy = Busy::default();
    let values = lab.repeats(|lab| {
        let counts = || -> Result<[f64; 2], String> {
            Ok([written(&server)?, server.metric("ringmq_records_appended_total")?])
        };
        let before = counts()?;
        let load = ["--topic=small", "--batch=100", "--record-size=100", "--frames=16", "--in-flight=8"];
        busy.note(&[&lab.produce(&server, &load)?])?;
        let after = counts()?;
        Ok((after[0] - before[0]) / (after[1] - before[1]).max(1.0) / 100.0)
    })?;
    let figure = Figure::value("disk bytes per byte of record", "×", values, Goal::AtMost(1.15));
    let notes = vec![
        "records of 100 bytes without a key, 100 in a frame; everything that the process wrote".to_owned(),
    ];
    Ok(busy.found(vec![figure], notes))
}

/// Time that the process has used, in seconds.
pub(super) fn used(server: &Server) -> Result<f64, String> {
    let path = format!("/proc/{}/stat", server.pid());
    let text = std::fs::read_to_string(&path).map_err(|e| format!("cannot read {path}: {e}"))?;
    // Behind the name, which may have spaces and ends with the last bracket: state is the first field, utime the 12th.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    ticks(11)
        .zip(ticks(12))
        .map(|(user, system)| (user + system) / TICKS)
        .ok_or_else(|| format!("{path} is short"))
}

/// A server with data and connections that nobody uses.
pub(super) fn idle(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    demand_working_space(lab)?;
    let server = lab.server("idle", Some(lab.sizes.retained))?;
    lab.produce(&server, &["--batch=100"])?;
    // Checkpoints and sidecars of the load are over.
    std::thread::sleep(lab.time.min(std::time::Duration::from_secs(3)));
    let values = lab.repeats(|lab| {
        let (before, since) = (used(&server)?, std::time::Instant::now());
        std::thread::sleep(lab.time);
        Ok(100.0 * (used(&server)? - before) / since.elapsed().as_secs_f64())
    })?;
    let figure = Figure::value("idle server", "% of a core", values, Goal::AtMost(0.3));
    let tick = 100.0 / (TICKS * lab.time.as_secs_f64());
    let notes = vec![format!("the kernel counts in ticks: a value is exact to {tick:.2} %")];
    Ok(Found { figures: vec![figure], load_cpu_percent: None, notes })
}
