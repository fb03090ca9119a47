//! What becomes visible later than it was stored: transactions, delays; and the settings of topics.

#[allow(dead_code, reason = "its user is being built")]
mod coordinator;
pub use coordinator::Timings;

use super::ShardServer;
use super::connection::Connection;
use super::mail::{ConnectionKey, Origin};
use ringmq_format::PartitionId;
use ringmq_protocol::request::Request;
use ringmq_protocol::{ErrorCode, Header};

/// Work for the shard that has it.
#[derive(Debug)]
pub(super) enum LateWork {}

/// What comes back.
#[derive(Debug)]
pub(super) enum LateAnswer {}

/// A request that waits.
#[derive(Debug)]
pub(super) enum LatePending {}

/// What a shard keeps for it.
#[derive(Debug, Default)]
pub(super) struct LateState {}

impl LateState {
    /// When `turn_late` wants to be called though nothing has completed.
    pub(super) fn deadline(&self) -> Option<u64> {
        None
    }

    /// `turn_late` again without sleeping.
    pub(super) fn has_work(&self) -> bool {
        false
    }

    /// Everything that is kept for somebody's request.
    pub(super) fn count(&self) -> usize {
        0
    }
}

impl LateWork {
    /// The partition that it is about.
    pub(super) fn partition(&self) -> Option<PartitionId> {
        match *self {}
    }
}

impl ShardServer {
    /// Carries out a request, or has it carried out where it belongs.
    pub(super) fn request_late(
        &mut self,
        _connection: &mut Connection,
        _header: &Header,
        _request: Request<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        Err((ErrorCode::UnknownOp, ErrorCode::UnknownOp.text()))
    }

    /// Does what a shard has asked of this one.
    pub(super) fn execute_late(&mut self, _origin: Origin, work: LateWork) {
        match work {}
    }

    /// Takes what came back.
    pub(super) fn take_late_answer(&mut self, _origin: Origin, answer: LateAnswer) {
        match answer {}
    }

    /// Once a turn, after acknowledgements.
    pub(super) fn turn_late(&mut self) {}

    /// A connection, of this shard or of another, is gone.
    pub(super) fn forget_in_late(&mut self, _shard: u16, _connection: ConnectionKey) {}
}
