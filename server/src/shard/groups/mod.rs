//! Consumer groups: who is a member, what is assigned to whom, where each group stands.

#[allow(dead_code)]
mod membership;

use super::ShardServer;
use super::connection::Connection;
use super::mail::{ConnectionKey, Origin};
use ringmq_format::PartitionId;
use ringmq_protocol::request::Request;
use ringmq_protocol::{ErrorCode, Header};

/// Work for the shard that has it.
#[derive(Debug)]
pub(super) enum GroupWork {}

/// What comes back.
#[derive(Debug)]
pub(super) enum GroupAnswer {}

/// A request that waits.
#[derive(Debug)]
pub(super) enum GroupPending {}

/// What a shard keeps for it.
#[derive(Debug, Default)]
pub(super) struct GroupState {}

impl GroupState {
    /// When `turn_groups` wants to be called though nothing has completed.
    pub(super) fn deadline(&self) -> Option<u64> {
        None
    }

    /// `turn_groups` again without sleeping.
    pub(super) fn has_work(&self) -> bool {
        false
    }

    /// Everything that is kept for somebody's request.
    pub(super) fn count(&self) -> usize {
        0
    }
}

impl GroupWork {
    /// The partition that it is about.
    pub(super) fn partition(&self) -> Option<PartitionId> {
        match *self {}
    }
}

impl ShardServer {
    /// Carries out a request, or has it carried out where it belongs.
    pub(super) fn request_groups(
        &mut self,
        _connection: &mut Connection,
        _header: &Header,
        _request: Request<'_>,
    ) -> Result<(), (ErrorCode, &'static str)> {
        Err((ErrorCode::UnknownOp, ErrorCode::UnknownOp.text()))
    }

    /// Does what a shard has asked of this one.
    pub(super) fn execute_groups(&mut self, _origin: Origin, work: GroupWork) {
        match work {}
    }

    /// Takes what came back.
    pub(super) fn take_groups_answer(&mut self, _origin: Origin, answer: GroupAnswer) {
        match answer {}
    }

    /// Once a turn, after acknowledgements.
    pub(super) fn turn_groups(&mut self) {}

    /// A connection, of this shard or of another, is gone.
    pub(super) fn forget_in_groups(&mut self, _shard: u16, _connection: ConnectionKey) {}
}
