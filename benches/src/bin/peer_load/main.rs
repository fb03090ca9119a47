//! `peer-load`: loads a peer as `ringmq bench produce` loads RingMQ: one thread, many connections, each with so many
//! requests in flight, latency from the sending to the answer, closed loop.
//!
//! It speaks just enough of each protocol to publish and to know that a publish was acknowledged. An answer that is an
//! error ends the run: what was refused must not count as fast.

mod peers;

use hdrhistogram::Histogram;
use peers::{Answers, Peer};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "\
usage: peer-load --peer redis-stream|redis-set|nats|beanstalk|amqp --server HOST:PORT
                 [--connections N] [--in-flight N] [--batch N] [--record-size BYTES]
                 [--warmup S] [--seconds S] [--pin CORE] [--load NAME] [--mode NAME]
Publishes in a closed loop and prints one line of JSON, as `ringmq bench` does. A batch is so many records in one
write; it is answered when all of them are.";

/// A peer that does not answer for so long is given up.
const STALL_MAX: Duration = Duration::from_secs(20);

struct Options {
    peer: String,
    server: String,
    connections: usize,
    in_flight: usize,
    batch: usize,
    record_size: usize,
    warmup: Duration,
    seconds: Duration,
    pin: Option<usize>,
    load: String,
    mode: String,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        peer: String::new(),
        server: String::new(),
        connections: 1,
        in_flight: 1,
        batch: 1,
        record_size: 128,
        warmup: Duration::from_secs(1),
        seconds: Duration::from_secs(5),
        pin: None,
        load: String::new(),
        mode: String::new(),
    };
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || value.parse::<usize>().map_err(|_| format!("{flag} is a number"));
        let time = || {
            let seconds: f64 = value.parse().map_err(|_| format!("{flag} is in seconds"))?;
            Duration::try_from_secs_f64(seconds).map_err(|_| format!("{flag} is in seconds"))
        };
        match flag.as_str() {
            "--peer" => options.peer = value,
            "--server" => options.server = value,
            "--connections" => options.connections = number()?,
            "--in-flight" => options.in_flight = number()?,
            "--batch" => options.batch = number()?,
            "--record-size" => options.record_size = number()?,
            "--warmup" => options.warmup = time()?,
            "--seconds" => options.seconds = time()?,
            "--pin" => options.pin = Some(number()?),
            "--load" => options.load = value,
            "--mode" => options.mode = value,
            _ => return Err(format!("unknown flag {flag}")),
        }
    }
    if options.server.is_empty() || options.connections * options.in_flight * options.batch == 0 {
        return Err("--server is needed, and numbers are at least 1".to_owned());
    }
    Ok(options)
}

/// One connection.
struct Lane {
    stream: TcpStream,
    peer: Peer,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// Requests without all of their answers: when they were sent, and answers that are missing.
    in_flight: VecDeque<(Instant, usize)>,
    blocked: bool,
}

fn run(options: &Options) -> Result<String, String> {
    if let Some(core) = options.pin {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).map_err(|e| format!("cannot pin to core {core}: {e}"))?;
    }
    let body = ringmq_benches::noise(options.record_size);
    let mut load = Load {
        options,
        body: body.iter().map(|byte| b'a' + byte % 26).collect(),
        lanes: Vec::new(),
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| format!("no epoll: {e}"))?,
        latencies: Histogram::new_with_bounds(1, 3_600_000_000_000, 3).map_err(|e| e.to_string())?,
        requests: 0,
        counting: false,
    };
    for number in 0..options.connections {
        load.connect(number)?;
    }
    load.go()
}

struct Load<'a> {
    options: &'a Options,
    body: Vec<u8>,
    lanes: Vec<Lane>,
    epoll: rustix::fd::OwnedFd,
    latencies: Histogram<u64>,
    requests: u64,
    counting: bool,
}

impl Load<'_> {
    fn connect(&mut self, number: usize) -> Result<(), String> {
        let server = &self.options.server;
        let mut stream =
            TcpStream::connect(server).map_err(|e| format!("cannot connect to {server}: {e}"))?;
        let setup = |e: std::io::Error| format!("connection {number}: {e}");
        stream.set_nodelay(true).map_err(setup)?;
        stream.set_read_timeout(Some(STALL_MAX)).map_err(setup)?;
        let peer = Peer::greet(&self.options.peer, number, &mut stream)?;
        stream.set_nonblocking(true).map_err(setup)?;
        let data = epoll::EventData::new_u64(number as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).map_err(|e| format!("epoll: {e}"))?;
        self.lanes.push(Lane {
            stream,
            peer,
            out: Vec::new(),
            sent: 0,
            input: Vec::new(),
            in_flight: VecDeque::new(),
            blocked: false,
        });
        Ok(())
    }

    fn go(mut self) -> Result<String, String> {
        let begun = Instant::now();
        let measure_at = begun + self.options.warmup;
        let stop_at = measure_at + self.options.seconds;
        let (mut started, mut cpu) = (begun, thread_cpu());
        let mut heard = begun;
        for number in 0..self.lanes.len() {
            self.send(number)?;
        }
        let mut events: Vec<epoll::Event> = Vec::with_capacity(1024);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let now = Instant::now();
            if !self.counting && now >= measure_at {
                self.counting = true;
                (started, cpu) = (now, thread_cpu());
            }
            if now >= stop_at {
                break;
            }
            let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(format!("epoll: {e}")),
            }
            if events.is_empty() && now - heard > STALL_MAX {
                return Err(format!("no answer for {} s", STALL_MAX.as_secs()));
            }
            for event in events.drain(..) {
                heard = now;
                let number = event.data.u64() as usize;
                self.receive(number, &mut buffer)?;
                self.send(number)?;
            }
        }
        let took = started.elapsed().as_secs_f64();
        let busy = 100.0 * (thread_cpu() - cpu).as_secs_f64() / took;
        Ok(self.report(took, busy))
    }

    /// Starts what may be started, and sends what the socket takes.
    fn send(&mut self, number: usize) -> Result<(), String> {
        let (options, body) = (self.options, &self.body);
        let lane = &mut self.lanes[number];
        loop {
            while lane.in_flight.len() < options.in_flight && lane.sent == lane.out.len() {
                lane.out.clear();
                lane.sent = 0;
                let answers = lane.peer.request(body, options.batch, &mut lane.out);
                lane.in_flight.push_back((Instant::now(), answers));
                match lane.stream.write(&lane.out) {
                    Ok(n) => lane.sent = n,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(format!("cannot send: {e}")),
                }
            }
            if lane.sent == lane.out.len() {
                break;
            }
            match lane.stream.write(&lane.out[lane.sent..]) {
                Ok(n) => lane.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => return Err(format!("cannot send: {e}")),
            }
        }
        let blocked = lane.sent < lane.out.len();
        if blocked != lane.blocked {
            lane.blocked = blocked;
            let out = if blocked { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let data = epoll::EventData::new_u64(number as u64);
            epoll::modify(&self.epoll, &lane.stream, data, epoll::EventFlags::IN | out)
                .map_err(|e| format!("epoll: {e}"))?;
        }
        Ok(())
    }

    fn receive(&mut self, number: usize, buffer: &mut [u8]) -> Result<(), String> {
        let lane = &mut self.lanes[number];
        match lane.stream.read(buffer) {
            Ok(0) => return Err("the peer closed the connection".to_owned()),
            Ok(n) => lane.input.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(format!("cannot receive: {e}")),
        }
        let Answers { mut count, used, reply } = lane.peer.answers(&lane.input)?;
        lane.input.drain(..used);
        lane.out.extend_from_slice(&reply);
        let now = Instant::now();
        while count > 0 {
            let Some((sent, missing)) = lane.in_flight.front_mut() else {
                return Err("an answer to nothing".to_owned());
            };
            let taken = count.min(*missing);
            (count, *missing) = (count - taken, *missing - taken);
            if *missing > 0 {
                break;
            }
            let latency = now.saturating_duration_since(*sent).as_nanos() as u64;
            lane.in_flight.pop_front();
            if self.counting {
                self.requests += 1;
                self.latencies.saturating_record(latency.max(1));
            }
        }
        Ok(())
    }

    fn report(&self, took: f64, busy: f64) -> String {
        let options = self.options;
        let us = |q: f64| self.latencies.value_at_quantile(q) as f64 / 1e3;
        let records = self.requests * options.batch as u64;
        let records_s = records as f64 / took;
        format!(
            "{{\"bench\":\"peer\",\"peer\":\"{}\",\"mode\":\"{}\",\"load\":\"{}\",\"connections\":{},\"in_flight\":{},\
             \"batch\":{},\"record_size\":{},\"seconds\":{took:.3},\"requests\":{},\"records\":{records},\
             \"records_s\":{records_s:.1},\"mb_s\":{:.3},\"latency_us\":{{\"count\":{},\"mean\":{:.1},\"p50\":{:.1},\
             \"p90\":{:.1},\"p99\":{:.1},\"p99_9\":{:.1},\"max\":{:.1}}},\"load_cpu_percent\":{busy:.1},\
             \"generator_bound\":{}}}",
            options.peer,
            options.mode,
            options.load,
            options.connections,
            options.in_flight,
            options.batch,
            options.record_size,
            self.requests,
            records_s * options.record_size as f64 / 1e6,
            self.latencies.len(),
            self.latencies.mean() / 1e3,
            us(0.5),
            us(0.9),
            us(0.99),
            us(0.999),
            self.latencies.max() as f64 / 1e3,
            busy > 90.0,
        )
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.max(0) as u64, now.tv_nsec.max(0) as u32)
}
