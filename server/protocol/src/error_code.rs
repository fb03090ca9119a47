//! What can go wrong, as numbers for ever.

use std::fmt;

/// What a client may do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request fails again: something else must change first.
    No,
    /// Nothing was done; the same request may succeed later.
    Yes,
    /// It may or may not have been done. An idempotent produce asks again with the same sequence and learns it.
    OutcomeUnknown,
}

macro_rules! codes {
    ($($number:literal $name:ident $retry:ident $doc:literal;)*) => {
        /// Code of an error answer, of a topic entry or of a produce outcome. 0 is "no error" and not listed.
        /// Numbers are for ever and a gap is never refilled.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $(#[doc = $doc] $name = $number,)*
        }

        impl ErrorCode {
            /// All codes, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code with this number.
            pub fn parse(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// What a client may do.
            pub fn retry(self) -> Retry {
                match self {
                    $(Self::$name => Retry::$retry,)*
                }
            }

            /// What it means, in a sentence that says what to do.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $doc,)*
                }
            }

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

codes! {
    // Messages.
    1 MalformedRequest No "The request's fields are not what its operation demands; the client has a bug";
    2 HeaderCrc Yes "The header's checksum differs; bytes were changed on the way, or this is not the RingMQ protocol";
    3 PayloadCrc Yes "The checksum of the request's own fields differs; bytes were changed on the way";
    4 UnsupportedVersion No "The two sides have no protocol version in common; upgrade the older one";
    5 HelloRequired No "HELLO must be the first request of a connection";
    6 HelloTwice No "HELLO was said already";
    7 UnknownOp No "The server does not know this operation; it is older than the client";
    8 RequestTooLarge No "The request is longer than the server takes; send less at once";
    9 TooManyInFlight Yes "More is unanswered than allowed; wait for answers first";
    10 NotPermitted No "This identity may not do that; ask the operator for the right";
    11 TooManyConnections Yes "The server has as many connections as it takes; try again later";
    12 Timeout OutcomeUnknown "The server gave up waiting; the request may still take effect";
    13 Internal OutcomeUnknown "The server met a condition it does not know; see its log";

    // Handles and subscriptions of a connection.
    20 UnknownHandle No "The handle was not opened on this connection, or its OPEN failed";
    21 HandleInUse No "The handle stands for something else already; choose another number";
    22 TooManyHandles No "The connection has as many handles as it may; open another connection";
    23 UnknownSubscription No "No such subscription on this connection";
    24 SubscriptionInUse No "The subscription number is taken; choose another";
    25 TooManySubscriptions No "The connection has as many subscriptions as it may; open another connection";

    // Topics.
    30 UnknownTopic No "No such topic; create it first";
    31 TopicExists No "A topic of this name exists";
    32 InvalidTopicName No "A topic name is 1 to 127 bytes of A-Z a-z 0-9 _ - . % and neither '.' nor '..'";
    33 InvalidPartitions No "A topic has 1 to 65,536 partitions";
    34 UnknownPartition No "The topic has fewer partitions";
    35 TooManyTopics No "The data directory has as many topics as it may";
    36 TooManyPartitions No "The data directory has as many partitions as it may";

    // Producing.
    40 FrameTooLarge No "The frame is larger than the server takes; send fewer or smaller records in a frame";
    41 FrameInvalid No "The frame's header, checksum or record table is not valid, or its kind may not be produced";
    42 OutOfOrderSequence No "The frame's sequence leaves a gap: a frame before it was not stored";
    43 DuplicateUnknownOffset No "The frame was stored earlier, too long ago for its offset to be known";
    44 ProducerFenced No "A newer epoch of this producer has written; this one must stop";
    45 ProducerUnknown No "The server has forgotten this producer's sequence; start a new epoch";
    46 DiskFull Yes "The disk budget is used up; wait until retention frees space, or raise the budget";
    47 OutcomeUnknown OutcomeUnknown "The log failed while the frame was being written; it may be found after a restart";
    48 ShardPoisoned Yes "The shard's log failed and takes nothing until the server is restarted; nothing was stored";

    // Reading.
    50 OffsetOutOfRange No "The offset lies before the log's start or behind its end";
    51 Damaged No "This range is damaged on disk and cannot be read; the message names its first and last offset";

    // States of the server.
    60 Throttled Yes "The server asks to slow down; try again after the time it names";
    61 Recovering Yes "The shard is still recovering; try again soon";
    62 ShuttingDown Yes "The server is shutting down; reconnect and try again";

    // Consumer groups.
    70 UnknownGroup No "No such consumer group; create it first, or join with permission to create it";
    71 GroupExists No "A consumer group of this name exists";
    72 InvalidGroupName No "A group name is 1 to 127 bytes of A-Z a-z 0-9 _ - . % and neither '.' nor '..'";
    73 NotAMember No "The member is not, or no longer, in the group: join again";
    74 StaleGeneration No "A newer member owns this partition: stop, heartbeat, and go on with the new assignment";
    75 SubscriptionConflict No "Members of a group must consume in the same mode with the same subscriptions; the message names the member and the difference";
    76 StaleHandle No "The record was delivered again, or settled under another lease: drop it";
    77 InvalidFilter No "The filter expression cannot be read; the message names the column";

    // Transactions and delays.
    78 UnknownTransaction No "No such transaction: it never was, or it was resolved longer ago than the server remembers";
    79 TransactionResolved No "The transaction was resolved the other way; the message says which and when";
    80 TransactionEnded No "The transaction is resolved already and takes nothing more; begin another one";
    81 TransactionTooLarge No "The transaction has as many messages on this shard as it may; commit smaller ones";
    82 UnknownTimer No "No such pending message: it never was, or it was delivered or cancelled longer ago than the server remembers";
    83 TimerDelivered No "The message was delivered already";
    84 DelayTooLong No "The delay is longer than the topic allows; choose an earlier time, or raise the topic's limit";
    85 TooManyPending Yes "As many delayed and half messages are pending as there is room for; try again later";
    86 InvalidSettings No "A setting is out of its range, or cannot be changed as asked; the message names it";
    87 WrongTopicKind No "The topic does not take messages of this kind; use another topic, or alter its kind";

    // Consumer groups again.
    88 UnknownLease No "No record was delivered to this group under this lease";
    89 GroupInUse No "The group has members; stop them first, or ask to remove it all the same";
    90 TooManyGroups No "The data directory has as many consumer groups as it may";
    91 TooManyMembers No "The group has as many members as it may";
    92 NotADeadLetter No "The record is not a dead letter, or where it came from is gone";
}

impl ErrorCode {
    /// Nothing was done, and the same request may succeed later.
    pub fn is_retriable(self) -> bool {
        self.retry() == Retry::Yes
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for ErrorCode {}
