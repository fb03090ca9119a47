//! What each protocol needs for a publish, and what an acknowledgement looks like.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

/// What one peer's protocol remembers of a connection.
pub(crate) enum Peer {
    /// `XADD` or `SET`.
    Redis {
        stream: bool,
        key: String,
    },
    /// JetStream: a publish with a reply subject; the answer is the stream's acknowledgement.
    Nats {
        connection: usize,
    },
    Beanstalk,
    /// Publisher confirms on a durable queue.
    Amqp {
        acked_to: u64,
        acked: BTreeSet<u64>,
    },
}

/// What was found at the front of the input.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) count: usize,
    /// Bytes that are done with.
    pub(crate) used: usize,
    /// What the peer wants to hear in return.
    pub(crate) reply: Vec<u8>,
}

const NAME: &str = "bench";
/// Entries that a Redis stream keeps, about: everything is in memory there.
const REDIS_KEPT: &str = "1000000";

fn read_line(stream: &mut TcpStream) -> Result<String, String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).map_err(|e| format!("no greeting: {e}"))?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

impl Peer {
    /// Says what has to be said first, and waits for the answers.
    pub(crate) fn greet(peer: &str, connection: usize, stream: &mut TcpStream) -> Result<Self, String> {
        let mut say = |bytes: &[u8]| stream.write_all(bytes).map_err(|e| format!("cannot send: {e}"));
        match peer {
            "redis-stream" => Ok(Self::Redis { stream: true, key: NAME.to_owned() }),
            "redis-set" => Ok(Self::Redis { stream: false, key: format!("{NAME}:{connection}") }),
            "beanstalk" => Ok(Self::Beanstalk),
            "nats" => {
                read_line(stream)?;
                let hello =
                    "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}";
                let inbox = format!("_INBOX.{connection}");
                let config = format!(
                    "{{\"name\":\"{NAME}\",\"subjects\":[\"{NAME}.>\"],\"storage\":\"file\",\"retention\":\"limits\",\
                     \"num_replicas\":1,\"max_bytes\":2000000000}}"
                );
                let create = format!("PUB $JS.API.STREAM.CREATE.{NAME} {inbox} {}\r\n{config}", config.len());
                let said = format!("{hello}\r\nSUB {inbox} 1\r\n{create}\r\nPING\r\n");
                stream.write_all(said.as_bytes()).map_err(|e| format!("cannot send: {e}"))?;
                // The answer to CREATE; it exists already for all connections but the first.
                loop {
                    let line = read_line(stream)?;
                    if line.starts_with("MSG") {
                        let answer = read_line(stream)?;
                        let ours = answer.contains("stream_create_response") && !answer.contains("\"error\"")
                            || answer.contains("already in use");
                        if !ours {
                            return Err(format!("no stream: {answer}"));
                        }
                        return Ok(Self::Nats { connection });
                    }
                    if line.starts_with("-ERR") {
                        return Err(line);
                    }
                }
            }
            "amqp" => {
                say(b"AMQP\0\0\x09\x01")?;
                amqp_expect(stream, (10, 10))?;
                let mut ok = vec![0, 0, 0, 0];
                short(&mut ok, "PLAIN");
                ok.extend_from_slice(&12u32.to_be_bytes());
                ok.extend_from_slice(b"\0guest\0guest");
                short(&mut ok, "en_US");
                amqp_say(stream, 0, (10, 11), &ok)?;
                let tune = amqp_expect(stream, (10, 30))?;
                let mut ok = tune.get(..6).ok_or("a short TUNE")?.to_vec();
                ok.extend_from_slice(&[0, 0]);
                amqp_say(stream, 0, (10, 31), &ok)?;
                amqp_say(stream, 0, (10, 40), b"\x01/\0\0")?;
                amqp_expect(stream, (10, 41))?;
                amqp_say(stream, 1, (20, 10), b"\0")?;
                amqp_expect(stream, (20, 11))?;
                let mut declare = vec![0, 0];
                short(&mut declare, NAME);
                declare.push(2);
                let mut table = Vec::new();
                short(&mut table, "x-queue-type");
                table.push(b'S');
                table.extend_from_slice(&6u32.to_be_bytes());
                table.extend_from_slice(b"quorum");
                declare.extend_from_slice(&(table.len() as u32).to_be_bytes());
                declare.extend_from_slice(&table);
                amqp_say(stream, 1, (50, 10), &declare)?;
                amqp_expect(stream, (50, 11))?;
                amqp_say(stream, 1, (85, 10), b"\0")?;
                amqp_expect(stream, (85, 11))?;
                Ok(Self::Amqp { acked_to: 0, acked: BTreeSet::new() })
            }
            _ => Err(format!("unknown peer {peer}")),
        }
    }

    /// Appends one request of `batch` records; answers how many acknowledgements it gets.
    pub(crate) fn request(&mut self, body: &[u8], batch: usize, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Redis { stream, key } => {
                for _ in 0..batch {
                    let words: Vec<&[u8]> = match stream {
                        true => {
                            vec![
                                b"XADD",
                                key.as_bytes(),
                                b"MAXLEN",
                                b"~",
                                REDIS_KEPT.as_bytes(),
                                b"*",
                                b"v",
                                body,
                            ]
                        }
                        false => vec![b"SET", key.as_bytes(), body],
                    };
                    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
                    for word in words {
                        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                        out.extend_from_slice(word);
                        out.extend_from_slice(b"\r\n");
                    }
                }
                batch
            }
            Self::Nats { connection } => {
                for _ in 0..batch {
                    let line = format!("PUB {NAME}.t _INBOX.{connection} {}\r\n", body.len());
                    out.extend_from_slice(line.as_bytes());
                    out.extend_from_slice(body);
                    out.extend_from_slice(b"\r\n");
                }
                batch
            }
            Self::Beanstalk => {
                for _ in 0..batch {
                    out.extend_from_slice(format!("put 0 0 60 {}\r\n", body.len()).as_bytes());
                    out.extend_from_slice(body);
                    out.extend_from_slice(b"\r\n");
                }
                batch
            }
            Self::Amqp { .. } => {
                for _ in 0..batch {
                    let mut publish = vec![0, 0, 0];
                    short(&mut publish, NAME);
                    publish.push(0);
                    amqp_method(out, 1, (60, 40), &publish);
                    let mut header = vec![0, 60, 0, 0];
                    header.extend_from_slice(&(body.len() as u64).to_be_bytes());
                    // Delivery mode 2: to the disk.
                    header.extend_from_slice(&[0x10, 0, 2]);
                    amqp_frame(out, 2, 1, &header);
                    amqp_frame(out, 3, 1, body);
                }
                batch
            }
        }
    }

    /// Takes whole answers from the front of the input.
    pub(crate) fn answers(&mut self, input: &[u8]) -> Result<Answers, String> {
        let mut answers = Answers::default();
        while let Some(len) = self.answer(&input[answers.used..], &mut answers)? {
            answers.used += len;
        }
        Ok(answers)
    }

    /// Length of the answer at the front, if it is whole.
    fn answer(&mut self, input: &[u8], answers: &mut Answers) -> Result<Option<usize>, String> {
        match self {
            Self::Amqp { acked_to, acked } => {
                let Some(frame) = amqp_parse(input) else { return Ok(None) };
                let AmqpFrame { kind, method, args, len } = frame;
                match (kind, method) {
                    (1, (60, 80)) => {
                        let tag = args.first_chunk::<8>().map(|tag| u64::from_be_bytes(*tag));
                        let (tag, many) = tag.zip(args.get(8)).ok_or("a short ACK")?;
                        if many & 1 == 1 {
                            let before = acked.len();
                            acked.retain(|other| *other > tag);
                            let already = before - acked.len();
                            answers.count += (tag.saturating_sub(*acked_to) as usize).saturating_sub(already);
                            *acked_to = tag;
                        } else if acked.insert(tag) {
                            answers.count += 1;
                            while acked.remove(&(*acked_to + 1)) {
                                *acked_to += 1;
                            }
                        }
                    }
                    (8, _) => {}
                    (1, method) => {
                        return Err(format!("the broker sent {method:?}: {}", String::from_utf8_lossy(args)));
                    }
                    _ => {}
                }
                Ok(Some(len))
            }
            _ => {
                let Some(end) = input.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
                let line = &input[..end];
                let mut len = end + 2;
                match self {
                    Self::Redis { .. } => match line.first() {
                        Some(b'+') => answers.count += 1,
                        Some(b'$') => {
                            len += number(&line[1..])? + 2;
                            if input.len() < len {
                                return Ok(None);
                            }
                            answers.count += 1;
                        }
                        _ => return Err(String::from_utf8_lossy(line).into_owned()),
                    },
                    Self::Beanstalk if line.starts_with(b"INSERTED") => answers.count += 1,
                    Self::Nats { .. } if line.starts_with(b"MSG") => {
                        let size = line.rsplit(|c| *c == b' ').next().unwrap_or_default();
                        let body = len..len + number(size)?;
                        len = body.end + 2;
                        if input.len() < len {
                            return Ok(None);
                        }
                        let answer = &input[body];
                        if answer.windows(7).any(|part| part == b"\"error\"") {
                            return Err(String::from_utf8_lossy(answer).into_owned());
                        }
                        answers.count += 1;
                    }
                    Self::Nats { .. } if line == b"PING" => answers.reply.extend_from_slice(b"PONG\r\n"),
                    Self::Nats { .. } if line == b"PONG" || line.starts_with(b"INFO") => {}
                    _ => return Err(String::from_utf8_lossy(line).into_owned()),
                }
                Ok(Some(len))
            }
        }
    }
}

fn number(text: &[u8]) -> Result<usize, String> {
    let text = String::from_utf8_lossy(text);
    text.parse().map_err(|_| format!("not a length: {text}"))
}

// --- AMQP 0-9-1 -------------------------------------------------------------------------------------------------

fn short(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn amqp_frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out.push(0xce);
}

fn amqp_method(out: &mut Vec<u8>, channel: u16, (class, method): (u16, u16), args: &[u8]) {
    let mut payload = Vec::with_capacity(args.len() + 4);
    payload.extend_from_slice(&class.to_be_bytes());
    payload.extend_from_slice(&method.to_be_bytes());
    payload.extend_from_slice(args);
    amqp_frame(out, 1, channel, &payload);
}

/// The frame at the front.
struct AmqpFrame<'a> {
    /// 1 is a method.
    kind: u8,
    method: (u16, u16),
    args: &'a [u8],
    len: usize,
}

fn amqp_parse(input: &[u8]) -> Option<AmqpFrame<'_>> {
    let size = u32::from_be_bytes(*input.get(3..7)?.first_chunk()?) as usize;
    let payload = input.get(7..7 + size)?;
    input.get(7 + size)?;
    let word = |at: usize| payload.get(at..at + 2).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    let args = payload.get(4..).unwrap_or_default();
    Some(AmqpFrame { kind: input[0], method: (word(0), word(2)), args, len: 7 + size + 1 })
}

fn amqp_say(stream: &mut TcpStream, channel: u16, method: (u16, u16), args: &[u8]) -> Result<(), String> {
    let mut out = Vec::new();
    amqp_method(&mut out, channel, method, args);
    stream.write_all(&out).map_err(|e| format!("cannot send: {e}"))
}

fn amqp_expect(stream: &mut TcpStream, expected: (u16, u16)) -> Result<Vec<u8>, String> {
    let mut frame = vec![0; 7];
    stream.read_exact(&mut frame).map_err(|e| format!("no {expected:?}: {e}"))?;
    let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
    frame.resize(7 + size + 1, 0);
    stream.read_exact(&mut frame[7..]).map_err(|e| format!("no {expected:?}: {e}"))?;
    match amqp_parse(&frame) {
        Some(AmqpFrame { kind: 1, method, args, .. }) if method == expected => Ok(args.to_vec()),
        Some(AmqpFrame { method, args, .. }) => {
            Err(format!("{method:?} where {expected:?} should come: {}", String::from_utf8_lossy(args)))
        }
        None => Err("not a frame".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(peer: &mut Peer, input: &[u8]) -> (usize, usize) {
        let answers = peer.answers(input).unwrap_or_else(|why| panic!("{why}"));
        (answers.count, answers.used)
    }

    #[test]
    fn whole_answers_are_counted_and_errors_are_none() {
        let mut redis = Peer::Redis { stream: true, key: String::new() };
        assert_eq!(count(&mut redis, b"$3\r\n1-0\r\n+OK\r\n$3\r\n1-"), (2, 14));
        assert!(redis.answers(b"-ERR no\r\n").is_err());
        let mut nats = Peer::Nats { connection: 0 };
        assert_eq!(count(&mut nats, b"MSG _INBOX.0 1 5\r\n{ok:}\r\nPING\r\nMSG _IN"), (1, 31));
        assert!(nats.answers(b"MSG _INBOX.0 1 9\r\n{\"error\"}\r\n").is_err());
        assert_eq!(count(&mut Peer::Beanstalk, b"INSERTED 1\r\nINSERTED 2\r\nINS"), (2, 24));
        assert!(Peer::Beanstalk.answers(b"OUT_OF_MEMORY\r\n").is_err());
        let mut amqp = Peer::Amqp { acked_to: 0, acked: BTreeSet::new() };
        let mut acks = Vec::new();
        for (tag, many) in [(2u64, 0u8), (3, 1), (4, 0)] {
            let mut args = tag.to_be_bytes().to_vec();
            args.push(many);
            amqp_method(&mut acks, 1, (60, 80), &args);
        }
        assert_eq!(count(&mut amqp, &acks), (4, acks.len()), "the second acknowledges 1 and 3");
    }
}
