//! Runs the binary as a user would.

#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::zombie_processes, reason = "the panic in between ends the test")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_ringmq");

/// The binary, ignorant of the environment that the tests run in.
pub(crate) fn ringmq() -> Command {
    let mut command = Command::new(BINARY);
    command
        .env_remove("RINGMQ_SERVER")
        .env_remove("NO_COLOR")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null());
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    ringmq().args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running server, killed when the test ends.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) ready: serde_json::Value,
    pub(crate) lines: BufReader<ChildStdout>,
}

/// `cargo test` runs on machines where io_uring is refused, too.
pub(crate) const IO_URING_REFUSED: i32 = 10;

impl Server {
    /// Starts one on free ports; none where io_uring is refused, after saying so.
    pub(crate) fn start(data: &Path, args: &[&str]) -> Option<Self> {
        let mut child = ringmq()
            .args(["server", "--json", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                let output = child.wait_with_output().unwrap();
                if output.status.code() == Some(IO_URING_REFUSED) {
                    println!("skipped: io_uring is refused here");
                    return None;
                }
                panic!("the server ended: {} {}", output.status, text(&output.stderr));
            }
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            if event["event"] == "ready" {
                return Some(Self { child, ready: event, lines });
            }
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([format!("-{signal}"), self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// The exit code, and what it said after `ready` on stdout, and everything on stderr.
    pub(crate) fn wait(mut self) -> (Option<i32>, String, String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the server does not stop");
            std::thread::sleep(Duration::from_millis(5));
        };
        let (mut out, mut err) = (String::new(), String::new());
        self.lines.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (status.code(), out, err)
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.ready["admin"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a page.
pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}
