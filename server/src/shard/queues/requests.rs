//! Requests of groups that consume record by record: from a connection to the shard of the partition, and back.

use super::receive::Receiving;
use super::settle::handle_of;
use super::{QueueAnswer, QueueWork};
use crate::shard::ShardServer;
use crate::shard::connection::{Connection, Pending};
use crate::shard::handles::Handle;
use crate::shard::mail::{Origin, Work};
use crate::shard::requests::{FETCH_BYTES_MAX, FETCH_TAG, NOBODY, RECOVERING_RETRY_MS, find_handle};
use ringmq_format::{GroupId, Offset};
use ringmq_protocol::limits::{FETCH_WAIT_MS_MAX, LEASES_MAX};
use ringmq_protocol::request::Request;
use ringmq_protocol::response::{ErrorBody, Response};
use ringmq_protocol::{ErrorCode, Header, Op};

/// Tags of RECEIVEs: answered like fetches, which have the tags from [`FETCH_TAG`] on.
pub(in crate::shard) const QUEUE_TAG: u64 = FETCH_TAG | 1 << 62;

/// A request that waits.
#[derive(Debug)]
pub(in crate::shard) struct QueuePending {
    correlation: u64,
    handle: u32,
    op: Op,
    /// That count against what a connection may have unanswered.
    bytes: usize,
}

pub(super) fn put_error(
    out: &mut Vec<u8>,
    op: Op,
    correlation: u64,
    handle: u32,
    code: ErrorCode,
    message: &str,
    retry_after_ms: u32,
) {
    let retry_after_ms = if code == ErrorCode::Recovering { RECOVERING_RETRY_MS } else { retry_after_ms };
    let body = ErrorBody { code: code as u16, retry_after_ms, message };
    body.encode(op as u8, correlation, handle, out);
}

impl ShardServer {
    /// Carries out a request, or has it carried out where it belongs.
    pub(in crate::shard) fn request_queues(
        &mut self,
        connection: &mut Connection,
        header: &Header,
        request: Request<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        let correlation = header.correlation();
        match request {
            Request::Receive(receive) => {
                let target = find_handle(connection, receive.handle)?;
                connection.in_flight += 1;
                self.queues.next_tag += 1;
                let origin = self.origin(connection, QUEUE_TAG + self.queues.next_tag);
                let receiving = Receiving {
                    correlation,
                    handle: receive.handle,
                    group: GroupId(receive.group),
                    member: receive.member,
                    max_records: receive.max_records.min(LEASES_MAX as u32),
                    max_bytes: receive.max_bytes.min(FETCH_BYTES_MAX as u32),
                    invisible_ms: receive.invisible_ms,
                    wait_ms: receive.wait_ms.min(FETCH_WAIT_MS_MAX),
                    until_us: 0,
                    blocked: false,
                };
                let work = QueueWork::Receive { partition: target.partition, receive: Box::new(receiving) };
                self.ask(connection, origin, target.shard, Work::Queue(work));
            }
            Request::Ack(ack) => {
                let target = find_handle(connection, ack.handle)?;
                let bytes = size_of_val(ack.leases);
                let work = QueueWork::Ack {
                    partition: target.partition,
                    group: GroupId(ack.group),
                    leases: ack.leases.iter().map(handle_of).collect(),
                };
                let pending = QueuePending { correlation, handle: ack.handle, op: Op::Ack, bytes };
                self.ask_queue(connection, pending, target, work);
            }
            Request::ChangeInvisible(change) => {
                let target = find_handle(connection, change.handle)?;
                let bytes = size_of_val(change.changes);
                let (partition, group) = (target.partition, GroupId(change.group));
                let work = QueueWork::Change { partition, group, changes: change.changes.to_vec() };
                let pending =
                    QueuePending { correlation, handle: change.handle, op: Op::ChangeInvisible, bytes };
                self.ask_queue(connection, pending, target, work);
            }
            Request::ReplayDeadLetters(replay) => {
                let target = find_handle(connection, replay.handle)?;
                let bytes = size_of_val(replay.offsets);
                let offsets = replay.offsets.iter().map(|offset| Offset(offset.get())).collect();
                let work =
                    QueueWork::Replay { partition: target.partition, dry_run: replay.dry_run, offsets };
                let pending =
                    QueuePending { correlation, handle: replay.handle, op: Op::ReplayDeadLetters, bytes };
                self.ask_queue(connection, pending, target, work);
            }
            _ => return Err((ErrorCode::UnknownOp, ErrorCode::UnknownOp.text())),
        }
        Ok(())
    }

    fn ask_queue(
        &mut self,
        connection: &mut Connection,
        pending: QueuePending,
        target: Handle,
        work: QueueWork,
    ) {
        connection.in_flight_bytes += pending.bytes;
        let slot = connection.keep(Pending::Queue(pending));
        let origin = self.origin(connection, u64::from(slot));
        self.ask(connection, origin, target.shard, Work::Queue(work));
    }

    /// Takes what came back.
    pub(in crate::shard) fn take_queues_answer(&mut self, origin: Origin, answer: QueueAnswer) {
        if let QueueAnswer::Lent { group, loan } = answer {
            assert_eq!(origin.connection, NOBODY, "a loan for a connection");
            return self.take_loan(group, loan);
        }
        let Some(connection) = self.connection(origin.connection) else { return };
        let Some(Pending::Queue(pending)) = connection.take_pending(origin.tag as u32) else { return };
        let QueuePending { correlation, handle, op, bytes } = pending;
        connection.in_flight_bytes -= bytes;
        let response = match &answer {
            QueueAnswer::Acked(outcomes) => Ok(Response::Acked(outcomes)),
            QueueAnswer::Changed(leases) => Ok(Response::Changed(leases)),
            QueueAnswer::Replayed(list) => Ok(Response::Replayed(list)),
            QueueAnswer::Failed(code) => Err(*code),
            QueueAnswer::Lent { .. } => Err(ErrorCode::Internal),
        };
        let failed = response.is_err();
        match response {
            Ok(response) => response.encode(correlation, handle, &mut connection.out),
            Err(code) => put_error(&mut connection.out, op, correlation, handle, code, code.text(), 0),
        }
        self.stats.request_errors += u64::from(failed);
        self.recharge(origin.connection);
        self.touched.push(origin.connection.slot);
    }
}
