//! `ringmq pub`: one record from the command line, or one a line from stdin.
//!
//! A thread reads and splits stdin; this task gives records to the producer, which batches while earlier ones are
//! unanswered, and takes acknowledgements in the order of the input. Memory is bounded by the producer's budget and
//! by a few batches of lines on the way. After the first record that was not stored nothing more is read; what was
//! under way is still waited for, and the summary says how far it came.

use crate::cli::{Common, Target};
use crate::failure::Failure;
use crate::lines::{Line, LineError, Lines};
use crate::link;
use crate::screen::{self, Ink, Screen, duration, thousands};
use crate::{format, timer};
use bytes::Bytes;
use indicatif::ProgressBar;
use ringmq_client::{
    Client, LateFuture, PendingHandle, Producer, ProducerConfig, RecordBuf, Resolution, SendError,
    SendFuture, Transaction, TransactionConfig, TransactionError, TransactionId,
};
use ringmq_format::limits::FRAME_SIZE_MAX;
use ringmq_server::units::{Size, Span};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Producer group of `--txn`.
const TXN_GROUP: &str = "ringmq-pub";
/// Batches of lines between the reading thread and the producer.
const BATCHES_WAITING: usize = 4;

const EXAMPLES: &str = "\
Examples:
  ringmq pub hello 'first message'
  tail -f access.log | ringmq pub logs
  ringmq pub orders --key customer-7 -H source=web '{\"total\": 12}'
  printf 'k1:v1\\nk2:v2\\n' | ringmq pub pairs -K :
  ringmq pub logs --acks-to acks.txt < big.log      one line per record on disk: partition, offset
  ringmq pub reminders --delay 10m 'call back'      `ringmq timer` lists, moves and cancels it
  ringmq pub orders --tag paid --txn < orders.txt   all lines become visible together, or none

Without VALUE, stdin is split at newlines only; every other byte is kept and empty lines are records.
An acknowledged record is on disk. Exit code 1 if any was not acknowledged.";

/// Publish one record, or one a line from stdin.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PubArgs {
    /// The topic.
    topic: String,
    /// The record; without it, one a line from stdin.
    value: Option<String>,
    /// Key of every record.
    #[arg(long, value_name = "KEY", conflicts_with = "key_separator")]
    key: Option<String>,
    /// Key and value of each line stand before and after the first SEP.
    #[arg(short = 'K', long, value_name = "SEP", conflicts_with = "value")]
    key_separator: Option<String>,
    /// Header of every record; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Tag of every record; groups filter by it.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Becomes visible so long after it was sent.
    #[arg(long, value_name = "TIME", conflicts_with = "at")]
    delay: Option<Span>,
    /// Becomes visible at this time: 2026-12-24T18:00:00Z, 2026-12-24, @1798135200.
    #[arg(long, value_name = "TIME", value_parser = timer::at)]
    at: Option<i64>,
    /// All records in one transaction, committed at the end of the input.
    #[arg(long)]
    txn: bool,
    /// Publish to this partition [default: by key; without one, any].
    #[arg(short, long, value_name = "P")]
    partition: Option<u32>,
    /// Append a line per acknowledged record to this file, in order: partition, offset.
    #[arg(long, value_name = "FILE")]
    acks_to: Option<PathBuf>,
    /// How long to go on trying while the server is away.
    #[arg(long, value_name = "TIME", default_value = "120s")]
    retry_for: Span,
    #[command(flatten)]
    target: Target,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

/// Publishes.
pub(crate) fn run(args: &PubArgs, common: &Common) -> Result<(), Failure> {
    link::block_on(async {
        let retry_for = Duration::from_millis(args.retry_for.0);
        let client = link::connect(&args.target, retry_for).await?;
        let config = ProducerConfig { auto_create: true, ..ProducerConfig::default() };
        let producer = client.producer(&args.topic, config).await;
        let producer =
            producer.map_err(|error| link::client_failure(&error, &args.target, Some(&args.topic)))?;
        match &args.value {
            Some(_) if args.txn => {
                Err(Failure::wrong_use("--txn is for records from stdin: one record is atomic by itself"))
            }
            Some(value) => one(args, value, &producer, common).await,
            None if args.txn => {
                let transaction = begin(&client, args).await?;
                Stream::new(args, common)?.run(&producer, Some(transaction), common).await
            }
            None => Stream::new(args, common)?.run(&producer, None, common).await,
        }
    })
}

fn record(args: &PubArgs, key: Option<Bytes>, body: Bytes, properties: &[(Bytes, Bytes)]) -> RecordBuf {
    let key = key.or_else(|| args.key.clone().map(Bytes::from));
    let tag = args.tag.clone().map(Bytes::from);
    RecordBuf { key, tag, properties: properties.to_vec(), body, ..RecordBuf::default() }
}

/// A transaction of which this process will say how it ends. If it dies, nobody knows: an operator does.
async fn begin(client: &Client, args: &PubArgs) -> Result<Transaction, Failure> {
    let config = TransactionConfig {
        producer: ProducerConfig { auto_create: true, ..ProducerConfig::default() },
        ..TransactionConfig::default()
    };
    let checker = |_| async { Resolution::Unknown };
    let producer = client.transactional_producer(TXN_GROUP, config, checker).await;
    let producer = producer.map_err(|error| link::client_failure(&error, &args.target, Some(&args.topic)))?;
    Ok(producer.begin())
}

/// Where a stored record is.
#[derive(Clone, Copy, Debug)]
struct Stored {
    partition: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Offset(u64),
    /// It is not visible yet.
    Pending(PendingHandle),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Offset(offset) => offset.fmt(f),
            Self::Pending(handle) => handle.fmt(f),
        }
    }
}

/// A record under way.
enum Sent {
    Now(SendFuture),
    Late(LateFuture),
}

impl Future for Sent {
    type Output = Result<Stored, SendError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(future) => Pin::new(future)
                .poll(context)
                .map_ok(|ack| Stored { partition: ack.partition, place: Place::Offset(ack.offset) }),
            Self::Late(future) => Pin::new(future)
                .poll(context)
                .map_ok(|ack| Stored { partition: ack.partition, place: Place::Pending(ack.handle) }),
        }
    }
}

async fn send(
    args: &PubArgs,
    producer: &Producer,
    transaction: Option<&Transaction>,
    record: RecordBuf,
) -> Result<Sent, SendError> {
    let due = timer::due(args.delay, args.at);
    let sent = match (transaction, due) {
        (Some(transaction), due) => {
            let sent = match due {
                Some(due) => transaction.send_at(&args.topic, record, args.partition, due).await,
                None => transaction.send(&args.topic, record, args.partition).await,
            };
            return sent.map(Sent::Late).map_err(|error| match error {
                TransactionError::Send(error) => error,
                TransactionError::Refused(refused) | TransactionError::Unknown(refused) => {
                    SendError::Refused(refused)
                }
                _ => SendError::Closed,
            });
        }
        (None, Some(due)) => return producer.send_at(record, args.partition, due).await.map(Sent::Late),
        (None, None) => producer.try_send(&record, args.partition),
    };
    match sent {
        Err(SendError::Full) => producer.send(record, args.partition).await.map(Sent::Now),
        sent => sent.map(Sent::Now),
    }
}

fn properties(args: &PubArgs) -> Vec<(Bytes, Bytes)> {
    let pairs = args.headers.iter().cloned();
    pairs.map(|(name, value)| (Bytes::from(name), Bytes::from(value))).collect()
}

/// Where and why a record was not stored.
fn send_failure(error: &SendError, args: &PubArgs, line: Option<u64>) -> Failure {
    let mut place = link::place(&args.target, Some(&args.topic));
    if let Some(line) = line {
        place = format!("line {} for {place}", thousands(line));
    }
    match error {
        SendError::Refused(refused) | SendError::Expired(Some(refused)) => {
            link::refused_failure(refused, &place, Some(&args.topic))
        }
        SendError::UnknownPartition { .. } => Failure::wrong_use(format!("{place}: {error}")),
        _ => Failure::failed(format!("{place}: {error}")),
    }
}

async fn one(args: &PubArgs, value: &str, producer: &Producer, common: &Common) -> Result<(), Failure> {
    let record = record(args, None, Bytes::from(value.to_owned()), &properties(args));
    let since = Instant::now();
    let ack = match send(args, producer, None, record).await {
        Ok(future) => future.await,
        Err(error) => Err(error),
    };
    let ack = ack.map_err(|error| send_failure(&error, args, None))?;
    let took = since.elapsed();
    let mut acks = AckFile::open(args)?;
    acks.write(&ack)?;
    acks.flush()?;
    let screen = Screen::new(common);
    let due = timer::due(args.delay, args.at).map(format::time);
    if screen.json {
        let (offset, handle) = match ack.place {
            Place::Offset(offset) => (Some(offset), None),
            Place::Pending(handle) => (None, Some(handle.to_string())),
        };
        let mut object = serde_json::json!({
            "topic": args.topic,
            "partition": ack.partition,
            "offset": offset,
            "ms": took.as_secs_f64() * 1e3,
        });
        if handle.is_some() {
            object["handle"] = handle.into();
            object["due"] = due.into();
        }
        screen.object(&object)?;
    } else if let (Place::Pending(handle), Some(due)) = (ack.place, due) {
        let place = screen.paint(Ink::Bold, &format!("{}[{}]", args.topic, ack.partition));
        let ms = took.as_secs_f64() * 1e3;
        screen.line(&format!("{place}  acked, on disk, {ms:.1} ms; message {handle} is visible at {due}"))?;
    } else {
        let place = screen.paint(Ink::Bold, &format!("{}[{}]@{}", args.topic, ack.partition, ack.place));
        screen.line(&format!("{place}  acked, on disk, {:.1} ms", took.as_secs_f64() * 1e3))?;
    }
    Ok(())
}

/// The file of `--acks-to`.
struct AckFile {
    file: Option<(BufWriter<File>, PathBuf)>,
}

impl AckFile {
    fn open(args: &PubArgs) -> Result<Self, Failure> {
        let Some(path) = &args.acks_to else { return Ok(Self { file: None }) };
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|error| ack_failure(path, &error))?;
        Ok(Self { file: Some((BufWriter::with_capacity(64 << 10, file), path.clone())) })
    }

    fn write(&mut self, ack: &Stored) -> Result<(), Failure> {
        match &mut self.file {
            Some((file, path)) => {
                writeln!(file, "{}, {}", ack.partition, ack.place).map_err(|error| ack_failure(path, &error))
            }
            None => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        match &mut self.file {
            Some((file, path)) => file.flush().map_err(|error| ack_failure(path, &error)),
            None => Ok(()),
        }
    }
}

fn ack_failure(path: &std::path::Path, error: &io::Error) -> Failure {
    Failure::failed(format!("--acks-to {}: {error}", path.display()))
}

type Batch = Result<Vec<Line>, LineError>;

/// Records on their way from stdin.
struct Stream<'a> {
    args: &'a PubArgs,
    properties: Vec<(Bytes, Bytes)>,
    waiting: VecDeque<(Sent, u32)>,
    acks: AckFile,
    bar: ProgressBar,
    since: Instant,
    lines: u64,
    acked: u64,
    bytes: u64,
    failure: Option<Failure>,
    committed: Option<TransactionId>,
}

impl<'a> Stream<'a> {
    fn new(args: &'a PubArgs, common: &Common) -> Result<Self, Failure> {
        // A person who types sees the prompt's own echo; a bar would only be in the way.
        let bar = if io::stdin().is_terminal() {
            ProgressBar::hidden()
        } else {
            screen::counter("published", common)
        };
        Ok(Self {
            args,
            properties: properties(args),
            waiting: VecDeque::new(),
            acks: AckFile::open(args)?,
            bar,
            since: Instant::now(),
            lines: 0,
            acked: 0,
            bytes: 0,
            failure: None,
            committed: None,
        })
    }

    async fn run(
        mut self,
        producer: &Producer,
        transaction: Option<Transaction>,
        common: &Common,
    ) -> Result<(), Failure> {
        let mut batches = read_stdin(self.args.key_separator.clone());
        let mut interrupted = false;
        while self.failure.is_none() {
            tokio::select! {
                batch = batches.recv() => match batch {
                    Some(Ok(lines)) => self.send(lines, producer, transaction.as_ref()).await,
                    Some(Err(error)) => self.fail(self.line_failure(&error)),
                    None => break,
                },
                result = Acked(&mut self.waiting), if !self.waiting.is_empty() => self.take(result),
                _ = tokio::signal::ctrl_c() => {
                    interrupted = true;
                    break;
                }
            }
            self.take_ready().await;
        }
        drop(batches);
        while !self.waiting.is_empty() {
            tokio::select! {
                result = Acked(&mut self.waiting) => self.take(result),
                _ = tokio::signal::ctrl_c() => {
                    let left = self.waiting.len();
                    self.waiting.clear();
                    self.fail(Failure::failed(format!("interrupted; {left} records may be stored or not")));
                }
            }
        }
        if let Err(failure) = self.acks.flush() {
            self.fail(failure);
        }
        if let Some(transaction) = transaction {
            self.end(transaction, interrupted).await;
        }
        self.summary(common, interrupted)?;
        self.failure.map_or(Ok(()), Err)
    }

    /// All of it, or nothing.
    async fn end(&mut self, transaction: Transaction, interrupted: bool) {
        let id = transaction.id();
        if interrupted || self.failure.is_some() {
            let rolled_back = transaction.rollback().await;
            let then = match (rolled_back, id) {
                (Ok(()), _) => "the transaction was rolled back".to_owned(),
                (Err(error), Some(id)) => format!("transaction {id} is perhaps open: {error}"),
                (Err(error), None) => error.to_string(),
            };
            self.fail(Failure::failed(format!("interrupted; {then}")));
            return;
        }
        match transaction.commit().await {
            Ok(committed) => self.committed = committed.id,
            Err(error) => {
                let place = link::place(&self.args.target, Some(&self.args.topic));
                let failure = Failure::failed(format!("{place}: not committed: {error}"));
                let cure = id.map(|id| format!("`ringmq txn show {id}` says what became of it"));
                self.fail(match cure {
                    Some(cure) => failure.cure(cure),
                    None => failure,
                });
            }
        }
    }

    async fn send(&mut self, lines: Vec<Line>, producer: &Producer, transaction: Option<&Transaction>) {
        for Line { key, body } in lines {
            self.lines += 1;
            let size = body.len() + key.as_ref().map_or(0, Bytes::len);
            let record = record(self.args, key, body, &self.properties);
            match send(self.args, producer, transaction, record).await {
                Ok(future) => self.waiting.push_back((future, u32::try_from(size).unwrap_or(u32::MAX))),
                Err(error) => {
                    self.fail(send_failure(&error, self.args, Some(self.lines)));
                    return;
                }
            }
        }
    }

    /// Everything that is acknowledged already, without waiting.
    async fn take_ready(&mut self) {
        while let Some(result) =
            std::future::poll_fn(|context| Poll::Ready(ready(&mut self.waiting, context))).await
        {
            self.take(result);
        }
        if let Err(failure) = self.acks.flush() {
            self.fail(failure);
        }
        self.bar.set_position(self.acked);
    }

    /// One answer, in the order of the input.
    fn take(&mut self, result: Result<(Stored, u32), SendError>) {
        // Lines in front of this one are acknowledged, or the first of them failed.
        let line = self.lines - self.waiting.len() as u64;
        match result {
            Ok((ack, size)) => {
                self.acked += 1;
                self.bytes += u64::from(size);
                if let Err(failure) = self.acks.write(&ack) {
                    self.fail(failure);
                }
            }
            Err(error) => self.fail(send_failure(&error, self.args, Some(line))),
        }
    }

    /// The first failure counts; later ones follow from it.
    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    fn line_failure(&self, error: &LineError) -> Failure {
        match error {
            LineError::Input(error) => Failure::failed(format!("stdin: {error}")),
            LineError::TooLong(line) => Failure::failed(format!(
                "line {} of stdin is longer than a record may be ({})",
                thousands(*line),
                Size(FRAME_SIZE_MAX as u64)
            ))
            .cure("split it, or store it elsewhere and publish where it is"),
        }
    }

    fn summary(&self, common: &Common, interrupted: bool) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        let took = self.since.elapsed();
        let rate = (self.acked as f64 / took.as_secs_f64().max(1e-9)) as u64;
        if common.json {
            return Ok(Screen::new(common).object(&serde_json::json!({
                "topic": self.args.topic,
                "transaction": self.committed.map(|id| id.to_string()),
                "acked": self.acked,
                "bytes": self.bytes,
                "seconds": took.as_secs_f64(),
                "records_per_s": rate,
                "complete": self.failure.is_none() && !interrupted,
            }))?);
        }
        let mut line = format!(
            "{} record{} acked, on disk: {} in {}",
            thousands(self.acked),
            if self.acked == 1 { "" } else { "s" },
            Size(self.bytes),
            duration(took),
        );
        if self.acked > 1 {
            line += &format!(", {}/s", thousands(rate));
        }
        if let Some(id) = self.committed {
            line += &format!("; transaction {id} committed");
        }
        if interrupted {
            line += "; interrupted";
        }
        let _ = writeln!(io::stderr().lock(), "{line}");
        Ok(())
    }
}

/// The next acknowledgement in the order of the input.
struct Acked<'a>(&'a mut VecDeque<(Sent, u32)>);

impl Future for Acked<'_> {
    type Output = Result<(Stored, u32), SendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        ready(self.0, context).map_or(Poll::Pending, Poll::Ready)
    }
}

fn ready(
    waiting: &mut VecDeque<(Sent, u32)>,
    context: &mut Context<'_>,
) -> Option<Result<(Stored, u32), SendError>> {
    let (future, size) = waiting.front_mut()?;
    match Pin::new(future).poll(context) {
        Poll::Ready(result) => {
            let size = *size;
            waiting.pop_front();
            Some(result.map(|ack| (ack, size)))
        }
        Poll::Pending => None,
    }
}

/// Reads stdin on a thread of its own; it ends with the input, with an error, or when nobody listens any more.
fn read_stdin(separator: Option<String>) -> mpsc::Receiver<Batch> {
    let (sender, receiver) = mpsc::channel(BATCHES_WAITING);
    std::thread::spawn(move || {
        let mut lines = Lines::new(io::stdin().lock(), separator.as_deref(), FRAME_SIZE_MAX);
        loop {
            let (batch, last) = match lines.next_batch() {
                Ok(Some(batch)) => (Ok(batch), false),
                Ok(None) => return,
                Err(error) => (Err(error), true),
            };
            if sender.blocking_send(batch).is_err() || last {
                return;
            }
        }
    });
    receiver
}
