//! `ringmq bench drain`: a member of a consumer group that reads on from where the group stands, as fast as the group
//! may. It is what works off a backlog beside a load.
//!
//! The group is made with the limits that are given, if it does not exist; its position is committed, so that the next
//! run goes on where this one ended.

use super::cpu::{self, Busy};
use super::latency::format_rate;
use super::report::{Progress, Target, generator_bound, load_text, parse_duration, parse_size};
use ringmq_client::{Client, ClientConfig, GroupConfig, GroupOptions, GroupStart, StreamConfig};
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  ringmq bench drain --group sale --group-rate 50M --duration 60s
  ringmq bench drain --group sale --from 1000000

The rate is kept by the server, for all members of the group together.";

/// Consume as a member of a group, as fast as the group may.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    target: Target,
    /// The group; made if it does not exist.
    #[arg(long, value_name = "NAME", default_value = "bench")]
    group: String,
    /// Bytes a second for the whole group, if it is made now [default: no limit].
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    group_rate: Option<usize>,
    /// Offset at which the group starts in each partition, if it is made now [default: the earliest].
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// How long it consumes.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    server: String,
    topic: String,
    group: String,
    group_rate: Option<usize>,
    seconds: f64,
    records: u64,
    records_s: f64,
    /// Bodies of records.
    mb_s: f64,
    /// Records that the group has not consumed at the end, if the server knows.
    lag_records: Option<u64>,
    load_cpu_percent: f64,
    generator_bound: bool,
}

pub(super) fn run(args: &DrainArgs, json: bool) -> Result<(), String> {
    let progress = Progress::new(!json, 0, args.duration);
    let (report, took) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(core) = args.target.pin {
                cpu::pin(core)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| format!("no runtime: {e}"))?;
            runtime.block_on(drain(args, &progress))
        });
        progress.watch(thread, false)
    })?;
    let lag = report.lag_records.map_or_else(|| "unknown".to_owned(), |records| records.to_string());
    let text = format!(
        "drain  topic {}, group {}\nrate     {:.0} records/s  {}  ({} records over {:.1} s, {lag} left)\n{}",
        report.topic,
        report.group,
        report.records_s,
        format_rate(report.mb_s),
        report.records,
        report.seconds,
        load_text(&[("", report.load_cpu_percent)], report.generator_bound),
    );
    args.target.deliver(&report, &[], took, &text, json)
}

async fn drain(args: &DrainArgs, progress: &Progress) -> Result<(Report, Duration), String> {
    let config = ClientConfig { name: "ringmq bench".to_owned(), ..ClientConfig::new(&args.target.server) };
    let client = Client::connect(config).await.map_err(|e| e.to_string())?;
    let options = GroupOptions {
        rate_bytes: args.group_rate.map(|rate| rate as u64),
        start: args.from.map(GroupStart::Offset),
        ..GroupOptions::default()
    };
    let group = GroupConfig::new(&args.group).topic(&args.target.topic).options(options);
    let consumer = client.group_consumer(group, StreamConfig::default()).await;
    let mut consumer = consumer.map_err(|e| e.to_string())?;
    let (started, busy) = (Instant::now(), Busy::start());
    let end = tokio::time::sleep_until((started + args.duration).into());
    tokio::pin!(end);
    let (mut records, mut bytes) = (0u64, 0u64);
    loop {
        // The end is looked at first: there may be a record at every look.
        tokio::select! {
            biased;
            () = &mut end => break,
            record = consumer.next() => {
                bytes += record.map_err(|e| e.to_string())?.body.len() as u64;
                records += 1;
            }
        }
        progress.records.store(records, Ordering::Relaxed);
    }
    let (took, load_cpu_percent) = (started.elapsed(), busy.percent());
    consumer.close(false).await.map_err(|e| format!("cannot commit: {e}"))?;
    let described = client.describe_group(&args.group).await.map_err(|e| e.to_string())?;
    let seconds = took.as_secs_f64();
    let report = Report {
        bench: "drain",
        server: client.server().version.clone(),
        topic: args.target.topic.clone(),
        group: args.group.clone(),
        group_rate: args.group_rate,
        seconds,
        records,
        records_s: records as f64 / seconds,
        mb_s: bytes as f64 / seconds / 1e6,
        lag_records: described.group.lag_records,
        load_cpu_percent,
        generator_bound: generator_bound(&[load_cpu_percent], false),
    };
    Ok((report, took))
}
