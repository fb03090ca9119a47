//! The real server, killed at its n-th `io_uring_enter`: every place at which it could have submitted something and
//! did not. The kernel's tracer pulls the trigger (`strace -e inject`), so that the binary is the one that is shipped.
//!
//! A case is a number of the call, on an empty directory under load; then the server is started again, everything
//! that was acknowledged has to be there, and it has to go on.

use crate::server::{Published, Publisher, Started, have, must_start, start, text, verify};
use crate::sweep::{Swept, sweep};
use crate::{Options, Ran};
use std::time::{Duration, Instant};

/// Calls of a server from its start to some way into the load.
const CALLS: u64 = 2_000;
/// How long a server that has not been killed yet is given.
const LOAD: Duration = Duration::from_secs(3);
/// Between cases that follow each other, so that any part is a fair sample.
const STRIDE: u64 = 773;

fn case(options: &Options, call: u64) -> Result<u64, String> {
    let scratch = tempfile::tempdir().map_err(text)?;
    let data = scratch.path().join("data");
    let inject = format!("inject=io_uring_enter:signal=KILL:when={call}");
    let wrapper = [
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        "-o",
        "/dev/null",
        "-e",
        "trace=io_uring_enter",
        "-e",
        &inject,
    ];
    let mut published: Vec<Published> = Vec::new();
    if let Started::Ready(mut server) = start(&options.binary, &data, scratch.path(), &wrapper, &[])? {
        if server.make_topic().is_ok() && server.is_running() {
            let publisher = Publisher::start(&server, scratch.path(), "a")?;
            let deadline = Instant::now() + LOAD;
            while server.is_running() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            published.push(publisher.end()?);
        }
        server.kill();
    }
    let acked = published.iter().map(|one| one.acks.len()).sum::<usize>();
    for life in ["b", "c"] {
        let server =
            must_start(&options.binary, &data, scratch.path(), &[]).map_err(Option::unwrap_or_default)?;
        server.make_topic()?;
        verify(&server.read()?, &published)?;
        let publisher = Publisher::start(&server, scratch.path(), life)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::fs::metadata(&publisher.acks).map_or(0, |file| file.len()) == 0 {
            if Instant::now() > deadline {
                return Err(format!("nothing is acknowledged after the restart ({acked} before)"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        published.push(publisher.end()?);
        if life == "b" {
            server.stop()?;
        }
    }
    Ok(1)
}

pub(crate) fn run(options: &Options) -> Ran {
    if !have("strace") {
        return Ran::Skipped("no strace".to_owned());
    }
    if !options.binary.exists() {
        return Ran::Skipped(format!("no server at {}", options.binary.display()));
    }
    let probe = tempfile::tempdir().map_err(text);
    let probe =
        probe.and_then(|dir| match must_start(&options.binary, &dir.path().join("data"), dir.path(), &[]) {
            Ok(_) => Ok(true),
            Err(None) => Ok(false),
            Err(Some(error)) => Err(error),
        });
    match probe {
        Ok(true) => {}
        Ok(false) => return Ran::Skipped("io_uring is refused here".to_owned()),
        Err(error) => return Ran::Done(Swept { finding: Some((options.from, error)), ..Swept::default() }),
    }
    Ran::Done(sweep(
        options,
        CALLS,
        "kills",
        || (),
        |(), number| {
            let call = 1 + number * STRIDE % CALLS;
            case(options, call).map_err(|found| format!("call {call}: {found}"))
        },
    ))
}
