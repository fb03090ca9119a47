//! Both loads against the client library's own test server.

use super::*;
use clap::Parser;

#[allow(dead_code, clippy::duplicate_mod, reason = "the client's own test server, of which this uses a part")]
#[path = "../../../../server/client/tests/fake/mod.rs"]
mod fake;

#[derive(Parser)]
struct Cli<T: clap::Args> {
    #[command(flatten)]
    args: T,
}

fn args<T: clap::Args>(server: &str, line: &str) -> T {
    let line = format!("bench --server {server} --topic t --warmup 20ms --duration 150ms {line}");
    Cli::parse_from(line.split_whitespace()).args
}

/// The server's address; it lives as long as the test.
fn server() -> String {
    let (tell, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = fake::Server::start().await;
            tell.send(server.address.clone()).unwrap();
            std::future::pending::<()>().await;
        });
    });
    address.recv().unwrap()
}

fn transactions(server: &str, line: &str) -> Outcome {
    let args: TransactionArgs = args(server, line);
    args.check().unwrap();
    let work = match args.late.plain {
        true => Work::Plain { records: args.halves },
        false => Work::Transaction { halves: args.halves, rollback: args.rollback },
    };
    load(&args.late, work, None, false).unwrap()
}

#[test]
fn transactions_are_counted_and_what_was_rolled_back_never_comes() {
    let server = server();
    for line in
        ["--in-flight 4 --halves 3 --partitions 2 --rollback 20", "--rate 200", "--plain --connections 2"]
    {
        let outcome = transactions(&server, &format!("--verify {line}"));
        let verdict = outcome.verdict.unwrap();
        assert!(verdict.holds() && verdict.acknowledged > 0, "{line}: {verdict:?}");
        assert!(outcome.latencies.quantiles().count > 0 && outcome.records > 0, "{line}");
        assert_eq!(outcome.rolled_back > 0, line.contains("rollback"), "{line}");
        assert!(outcome.failed.is_empty(), "{line}: {:?}", outcome.failed);
    }
}

#[test]
fn delayed_records_come_when_they_are_due() {
    let server = server();
    let line = "--verify --delay 60ms --rate 200 --record-size 100";
    let args: DelayArgs = args(&server, line);
    args.check().unwrap();
    let outcome = load(&args.late, Work::Delay { after: args.delay, read: true }, None, false).unwrap();
    let verdict = outcome.verdict.unwrap();
    assert!(verdict.holds() && verdict.acknowledged > 0, "{verdict:?}");
    assert!(outcome.late.quantiles().count > 0);
    let outcome = load(&args.late, Work::Delay { after: args.delay, read: true }, Some(17), false).unwrap();
    assert_eq!(outcome.records, 17);
}

#[test]
fn what_is_left_open_is_counted_and_what_nobody_reads_is_waited_for() {
    let server = server();
    let open: TransactionArgs = args(&server, "--open 5 --halves 2 --in-flight 3");
    open.check().unwrap();
    let outcome = load(&open.late, Work::Open { halves: 2 }, open.open, false).unwrap();
    assert_eq!((outcome.requests, outcome.records, outcome.failed.len()), (5, 10, 0));
    let unread: DelayArgs = args(&server, "--unread --delay 60ms --rate 200 --record-size 100");
    unread.check().unwrap();
    let outcome = load(&unread.late, Work::Delay { after: unread.delay, read: false }, None, false).unwrap();
    assert!(outcome.records > 0 && outcome.late.quantiles().count == 0);
}

#[test]
fn wrong_use_is_refused_with_a_reason() {
    for (line, part) in [
        ("--halves 0", "--halves"),
        ("--rollback 10 --plain", "--rollback"),
        ("--record-size 10", "40"),
        ("--open 5 --plain", "--open"),
        ("--in-flight 0", "--in-flight"),
    ] {
        let why = args::<TransactionArgs>("nowhere", line).check().unwrap_err();
        assert!(why.contains(part), "{line}: {why}");
    }
    assert!(args::<DelayArgs>("nowhere", "--pending 5 --verify").check().is_err());
    assert!(args::<DelayArgs>("nowhere", "--unread --verify").check().is_err());
    assert_eq!(parse_delay("2h"), Ok(Duration::from_secs(7200)));
}
