//! Rows on memory of what is there in great numbers and does nothing: subscribers of a broadcast, connections,
//! partitions. Each is the growth of the server's resident memory, shared by their number, after everything was
//! touched that storing anything at all touches.

use super::lab::{Figure, Found, Lab, Server, Skip};
use super::rows::demand_working_space;
use crate::bench::stats::Goal;
use crate::bench::wire::{Conn, locate};
use ringmq_format::PartitionId;
use ringmq_protocol::{
    CommitOffsets, GroupMode, GroupSettings, ItemsBuf, JoinGroup, LeaveGroup, PositionEntry, Request,
    Response, Subscription,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;

const MIB: f64 = 1024.0 * 1024.0;
/// Partitions of the topic that is broadcast: so many cursors of each subscriber make the growth larger than chance.
const BROADCAST_PARTITIONS: u32 = 16;
/// What was allocated for the moment is given back, and background work is over.
const SETTLE: Duration = Duration::from_millis(500);
/// Descriptors of this process beside those of connections.
const OTHER_DESCRIPTORS: u64 = 64;

fn warm(lab: &mut Lab<'_>, name: &str) -> Result<Server, Skip> {
    demand_working_space(lab)?;
    let server = lab.server(name, Some(lab.sizes.retained))?;
    lab.fill(&server, "fill", 2 * lab.sizes.memory)?;
    Ok(server)
}

fn settled(server: &Server) -> Result<f64, String> {
    std::thread::sleep(SETTLE);
    server.resident_mib("VmRSS")
}

fn growth(before: f64, after: f64, count: u64) -> f64 {
    (after - before) * MIB / count as f64
}

/// Subscribers with a stable name that have committed a position and are gone.
pub(super) fn cursors(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let mut server = warm(lab, "cursors")?;
    let topic = "broadcast";
    let one_each = [
        format!("--topic={topic}"),
        format!("--partitions={BROADCAST_PARTITIONS}"),
        format!("--frames={BROADCAST_PARTITIONS}"),
        format!("--records={BROADCAST_PARTITIONS}"),
        "--batch=1".to_owned(),
        "--warmup=0".to_owned(),
    ];
    lab.load(&server, "produce", &one_each)?.finish(lab.stop)?;
    let (mut conn, place) = locate(&server.dialled(), topic, None)?;
    let positions: Vec<PositionEntry> = (0..BROADCAST_PARTITIONS)
        .map(|index| PositionEntry::new(PartitionId(place.base_partition + index), 1))
        .collect();
    // The group itself is there before.
    subscribe(&mut conn, topic, 0, &positions)?;
    let before = settled(&server)?;
    for number in 1..=lab.sizes.cursors {
        if number % 256 == 0 {
            lab.check_stop()?;
        }
        subscribe(&mut conn, topic, number, &positions)?;
    }
    let after = settled(&server)?;
    drop(conn);
    let mut clean = Vec::new();
    for _ in 0..lab.pairs {
        lab.check_stop()?;
        server.stop()?;
        clean.push(server.restart()?);
    }
    let count = lab.sizes.cursors * u64::from(BROADCAST_PARTITIONS);
    let figures = vec![
        Figure::value("a cursor", "B", vec![growth(before, after, count)], Goal::AtMost(40.0)),
        Figure::value("more resident than before", "MiB", vec![after - before], Goal::Reported),
        Figure::value("clean start", "s", clean, Goal::Reported),
    ];
    let notes = vec![format!(
        "{} subscribers of {BROADCAST_PARTITIONS} partitions each, all gone again: {count} cursors",
        lab.sizes.cursors
    )];
    Ok(Found { figures, load_cpu_percent: None, notes })
}

/// A subscriber comes, commits, and goes.
fn subscribe(conn: &mut Conn, topic: &str, number: u64, positions: &[PositionEntry]) -> Result<(), String> {
    let list: ItemsBuf = std::iter::once(Subscription { topic, filter: "*" }).collect();
    let instance = format!("cache-{number}");
    let join = JoinGroup {
        group: "caches",
        mode: GroupMode::Broadcast,
        member: 0,
        name: "bench",
        instance: &instance,
        session_ms: 60_000,
        create: true,
        settings: GroupSettings::default(),
        subscriptions: list.items(),
    };
    let joined = conn.call(&Request::JoinGroup(join), |response| match response {
        Response::Joined(joined) => Some((joined.group, joined.member, joined.generation, joined.instance)),
        _ => None,
    });
    let (group, member, generation, instance) = joined?;
    let commit = CommitOffsets { group, member, generation, instance, txn: 0, positions };
    let done = conn.call(&Request::CommitOffsets(commit), |response| match response {
        Response::Committed(outcomes) => Some(outcomes.iter().all(|outcome| outcome.is_done())),
        _ => None,
    });
    if !done? {
        return Err("a position was refused".to_owned());
    }
    let leave = LeaveGroup { group, member, forget: false };
    conn.call(&Request::LeaveGroup(leave), |response| matches!(response, Response::Left).then_some(()))
}

/// Connections that have said hello and nothing since.
pub(super) fn connections(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let server = warm(lab, "connections")?;
    let wanted = lab.sizes.connections;
    let limit = getrlimit(Resource::Nofile);
    let enough = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, enough).map_err(|e| format!("cannot raise the limit of descriptors: {e}"))?;
    if limit.maximum.is_some_and(|most| most < wanted + OTHER_DESCRIPTORS) {
        return Err(Skip::Because(format!("needs {wanted} descriptors, {:?} are allowed", limit.maximum)));
    }
    let address = server.dialled().parse().map_err(|e| format!("{}: {e}", server.dialled()))?;
    let values = lab.repeats(|lab| {
        let before = settled(&server)?;
        let mut open = Vec::with_capacity(wanted as usize);
        for _ in 0..wanted {
            open.push(Conn::dial(address)?.0);
        }
        lab.check_stop()?;
        Ok(growth(before, settled(&server)?, wanted) / 1024.0)
    })?;
    // Once they were there, others take their place in memory that is kept: only the first time counts.
    let first = values.first().copied().into_iter().collect();
    let figures = vec![
        Figure::value("a connection", "KiB", first, Goal::AtMost(8.0)),
        Figure::value("the same again", "KiB", values, Goal::Reported),
    ];
    let notes = vec![format!("{wanted} connections; what the kernel keeps for a socket is not in it")];
    Ok(Found { figures, load_cpu_percent: None, notes })
}

/// Partitions to which nothing is written, and to which something was once.
pub(super) fn partitions(lab: &mut Lab<'_>) -> Result<Found, Skip> {
    let server = warm(lab, "partitions-idle")?;
    let count = lab.sizes.idle_partitions;
    let before = settled(&server)?;
    locate(&server.dialled(), "idle", Some(count))?;
    let made = settled(&server)?;
    let frames = 100.min(count);
    let load = [
        "--topic=idle".to_owned(),
        format!("--partitions={count}"),
        format!("--frames={frames}"),
        format!("--records={count}"),
        "--batch=1".to_owned(),
        "--record-size=64".to_owned(),
        "--warmup=0".to_owned(),
    ];
    lab.load(&server, "produce", &load)?.finish(lab.stop)?;
    let written = settled(&server)?;
    let count = u64::from(count);
    let figures = vec![
        Figure::value(
            "a partition, never written",
            "B",
            vec![growth(before, made, count)],
            Goal::AtMost(500.0),
        ),
        Figure::value(
            "a partition, written once",
            "B",
            vec![growth(before, written, count)],
            Goal::AtMost(500.0),
        ),
    ];
    let notes = vec![format!("{count} partitions of one topic, one shard")];
    Ok(Found { figures, load_cpu_percent: None, notes })
}
