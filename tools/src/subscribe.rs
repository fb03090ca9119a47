//! `ringmq sub`: records of a topic to stdout, one after the other.
//!
//! What a batch brought is written at once and flushed, so that a pipe sees records as they come. A reader that goes
//! away (`| head`) ends it quietly.

use crate::cli::{Common, Target};
use crate::failure::Failure;
use crate::format::{self, DIRECTIVES, Format, Shown, harmless};
use crate::link;
use crate::screen::{Ink, Screen};
use crate::start::{self, TIMES};
use crate::{dead_letters, subscribe_group};
use ringmq_client::{
    ConsumeError, ConsumedRecord, Consumer, ConsumerConfig, ErrorCode, Halt, Partitions, Start,
};
use ringmq_server::units::Span;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

/// Records taken from the consumer at once.
const BATCH: usize = 4_096;
/// Bytes that may be on the way, over all partitions.
const CREDIT: u64 = 32 << 20;

/// Read a topic, each partition in order.
#[derive(Debug, clap::Args)]
#[command(after_help = examples())]
pub(crate) struct SubArgs {
    /// The topic.
    pub(crate) topic: String,
    /// As a member of this group, made if it is missing: it goes on where the group is.
    #[arg(short, long, value_name = "GROUP", conflicts_with_all = ["partition", "until"])]
    group: Option<String>,
    /// How the group consumes [default: stream].
    #[arg(long, value_name = "MODE", requires = "group")]
    pub(crate) mode: Option<Mode>,
    /// Stable name of this subscriber of a broadcast: it goes on where it was.
    #[arg(long, value_name = "NAME", requires = "group")]
    pub(crate) instance: Option<String>,
    /// Only what matches, chosen by the server: tags (`a || b`) or SQL92 on properties.
    #[arg(long, value_name = "EXPR", requires = "group", value_parser = filter)]
    pub(crate) filter: Option<String>,
    /// First the latest record of each key, then what comes: no gap, no repeat.
    #[arg(long, conflicts_with_all = ["group", "partition", "from"])]
    latest_per_key: bool,
    /// Read only this partition; may be repeated.
    #[arg(short, long, value_name = "P")]
    partition: Vec<u32>,
    /// Begin at earliest, latest, an offset or a time; a group only where it has no position [default: earliest].
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true)]
    pub(crate) from: Option<start::From>,
    /// Stop at `end`: what was on disk when it began [default: go on for ever].
    #[arg(long, value_name = "WHERE")]
    pub(crate) until: Option<Until>,
    /// Stop after so many records.
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub(crate) count: Option<u64>,
    /// How each record is written [default: in a pipe '%v\n', at a terminal a line with offset and time].
    #[arg(short, long, value_name = "FORMAT", conflicts_with = "json")]
    format: Option<Format>,
    /// How long to go on trying while the server is away.
    #[arg(long, value_name = "TIME", default_value = "120s")]
    retry_for: Span,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// How members of a group consume.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Each partition has one member, who reads it in order.
    #[default]
    Stream,
    /// Members share partitions record by record.
    Queue,
    /// Every member gets every record.
    Broadcast,
}

fn filter(text: &str) -> Result<String, String> {
    dead_letters::filter(text).map(|_| text.to_owned())
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Until {
    End,
}

fn examples() -> String {
    format!(
        "\
Examples:
  ringmq sub hello                                  everything, then what comes
  ringmq sub hello -n 1
  ringmq sub logs --from start --until end > copy   byte for byte what `pub` was given
  ringmq sub logs --from -15m --json | jq .value
  ringmq sub logs --partition 3 --from 42 -f '%t %p %o %k %v\\n'
  ringmq sub users --group mail                     a member; what was written is committed
  ringmq sub orders --group work --mode queue --filter 'paid || sent'
  ringmq sub prices --group feed --mode broadcast --instance $HOSTNAME
  ringmq sub prices --latest-per-key

{DIRECTIVES}
{TIMES}"
    )
}

/// Reads.
pub(crate) fn run(args: &SubArgs, common: &Common) -> Result<(), Failure> {
    if args.count == Some(0) {
        return Ok(());
    }
    link::block_on(async {
        let failure = |error| link::client_failure(&error, &args.target, Some(&args.topic));
        let client = link::connect(&args.target, Duration::from_millis(args.retry_for.0)).await?;
        if let Some(group) = &args.group {
            return subscribe_group::read(args, group, &client, common).await;
        }
        if args.latest_per_key {
            return subscribe_group::latest(args, &client, common).await;
        }
        let config = ConsumerConfig {
            partitions: match &args.partition[..] {
                [] => Partitions::All,
                some => Partitions::Some(some.to_vec()),
            },
            start: match args.from {
                None | Some(start::From::Earliest) => Start::Earliest,
                Some(start::From::Latest) => Start::Latest,
                Some(start::From::Offset(offset)) => Start::Offset(offset),
                Some(start::From::Time(time)) => Start::TimeMs(time),
            },
            credit_bytes: CREDIT,
            auto_create: true,
            ..ConsumerConfig::default()
        };
        let consumer = client.consumer(&args.topic, config).await.map_err(failure)?;
        read(args, consumer, common).await
    })
}

async fn read(args: &SubArgs, mut consumer: Consumer, common: &Common) -> Result<(), Failure> {
    let printer = Printer::new(args, common);
    let ends = match args.until {
        Some(Until::End) => Some(consumer.ends().await.map_err(|error| consume_failure(&error, args))?),
        None => None,
    };
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 && !ends.as_ref().is_some_and(|ends| consumer.reached(ends)) {
        let batch = consumer.next_batch(BATCH).await.map_err(|error| consume_failure(&error, args))?;
        let wanted = batch.iter().filter(|record| is_below(record, ends.as_ref()));
        let wanted = wanted.take(usize::try_from(left).unwrap_or(usize::MAX));
        left -= printer.print(wanted)?;
    }
    Ok(())
}

/// Records behind the ends seen at the start may come with a batch; they are not asked for.
fn is_below(record: &ConsumedRecord, ends: Option<&BTreeMap<u32, u64>>) -> bool {
    ends.is_none_or(|ends| ends.get(&record.partition).is_none_or(|end| record.offset < *end))
}

pub(crate) fn consume_failure(error: &ConsumeError, args: &SubArgs) -> Failure {
    let place = link::place(&args.target, Some(&args.topic));
    let ConsumeError::Halted { partition, position, halt } = error else {
        return Failure::failed(format!("{place}: {error}"));
    };
    match halt {
        Halt::Refused(refused) if refused.code() == Some(ErrorCode::Damaged) => {
            Failure::damage(format!("{place}, partition {partition} at offset {position}: {refused}"))
                .cure("read behind it with --from OFFSET")
        }
        Halt::Received(received) => {
            Failure::damage(format!("{place}, partition {partition} at offset {position}: {received}"))
        }
        Halt::OutOfRange { log_start } => Failure::failed(format!(
            "{place}, partition {partition}: offset {position} is not in the log, which begins at {log_start}"
        ))
        .cure(format!("--from earliest, or --from {log_start} or later")),
        Halt::Refused(refused) => link::refused_failure(refused, &place, Some(&args.topic)),
        Halt::Unreachable => {
            Failure::failed(format!("{place}: the server was away for longer than --retry-for"))
                .cure(format!("go on with --partition {partition} --from {position}"))
        }
    }
}

/// How records are written.
pub(crate) struct Printer<'a> {
    topic: &'a str,
    screen: Screen,
    /// None: a decorated line.
    format: Option<Format>,
}

impl<'a> Printer<'a> {
    pub(crate) fn new(args: &'a SubArgs, common: &Common) -> Self {
        let screen = Screen::new(common);
        let format = args.format.clone().or_else(|| (!screen.terminal).then(Format::plain));
        Self { topic: &args.topic, screen, format }
    }

    /// Writes and flushes; how many there were.
    pub(crate) fn print<'r>(
        &self,
        records: impl Iterator<Item = &'r ConsumedRecord>,
    ) -> Result<u64, Failure> {
        let mut out = Vec::new();
        let mut count = 0;
        for record in records {
            self.write(&mut out, record)?;
            count += 1;
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&out)?;
        stdout.flush()?;
        Ok(count)
    }

    fn write(&self, out: &mut Vec<u8>, record: &ConsumedRecord) -> io::Result<()> {
        let headers = record.properties.iter().collect::<Vec<_>>();
        let shown = Shown {
            topic: self.topic,
            partition: record.partition,
            offset: record.offset,
            time_ms: record.timestamp_ms,
            key: record.key.as_deref(),
            value: &record.body,
            headers: &headers,
        };
        match &self.format {
            _ if self.screen.json => writeln!(out, "{}", format::to_json(&shown)),
            Some(format) => format.write(out, &shown),
            None => self.decorated(out, &shown),
        }
    }

    /// `hello[0]@0  2026-11-22T06:29:44.120Z  key  first message`.
    fn decorated(&self, out: &mut Vec<u8>, record: &Shown<'_>) -> io::Result<()> {
        let place = format!("{}[{}]@{}", self.topic, record.partition, record.offset);
        let place = self.screen.paint(Ink::Bold, &place);
        let time = self.screen.paint(Ink::Dim, &format::time(record.time_ms));
        write!(out, "{place}  {time}  ")?;
        if let Some(key) = record.key {
            write!(out, "{}  ", self.screen.paint(Ink::Green, &harmless(key)))?;
        }
        writeln!(out, "{}", harmless(record.value))
    }
}
