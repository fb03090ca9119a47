//! From the command line to the client library, and from its errors to failures that say what to do.

use crate::cli::Target;
use crate::failure::Failure;
use ringmq_client::{Client, ClientConfig, ClientError, ErrorCode, Refused};
use std::future::Future;
use std::time::Duration;

/// Runs a verb's work on a runtime of its own, on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::failed(format!("the runtime cannot start: {error}")))?.block_on(work)
}

/// A connection to the server that `target` names.
pub(crate) async fn connect(target: &Target, retry_for: Duration) -> Result<Client, Failure> {
    let config = ClientConfig {
        name: concat!("ringmq ", env!("CARGO_PKG_VERSION")).to_owned(),
        retry_for,
        ..ClientConfig::new(target.server.clone())
    };
    Client::connect(config).await.map_err(|error| client_failure(&error, target, None))
}

/// An error of the client, with the server, the topic and the way out.
pub(crate) fn client_failure(error: &ClientError, target: &Target, topic: Option<&str>) -> Failure {
    failure_at(error, place(target, topic), topic)
}

/// The same about something that is no topic: a group, a transaction, a message.
pub(crate) fn failure_about(error: &ClientError, target: &Target, noun: &str, name: &str) -> Failure {
    let name = crate::format::harmless(name.as_bytes());
    let failure = failure_at(error, format!("{noun} '{name}' on {}", target.server), None);
    let code = match error {
        ClientError::Refused(refused) => refused.code(),
        _ => None,
    };
    match code {
        Some(ErrorCode::UnknownGroup) => failure.cure("`ringmq group ls` lists the groups"),
        Some(ErrorCode::GroupExists) => failure.cure(format!("`ringmq group set {name}` changes it")),
        Some(ErrorCode::UnknownTransaction) => {
            failure.cure("`ringmq txn ls` lists what is open; what was resolved long ago is forgotten")
        }
        _ => failure,
    }
}

fn failure_at(error: &ClientError, place: String, topic: Option<&str>) -> Failure {
    let innermost = match error {
        ClientError::TimedOut(last) => last,
        other => other,
    };
    match innermost {
        ClientError::Address(_) => Failure::wrong_use(format!("--server: {error}")),
        ClientError::Topic(_) | ClientError::Name { .. } | ClientError::UnknownPartition { .. } => {
            Failure::wrong_use(format!("{place}: {error}"))
        }
        ClientError::Connect { address, source } => Failure::failed(format!("no connection to {address}: {source}"))
            .cure("start a server with `ringmq server --dev`, or say where one is with --server ADDR or RINGMQ_SERVER"),
        ClientError::Refused(refused) => refused_failure(refused, &place, topic),
        _ => Failure::failed(format!("{place}: {error}")),
    }
}

/// What the server said instead of doing it.
pub(crate) fn refused_failure(refused: &Refused, place: &str, topic: Option<&str>) -> Failure {
    let failure = Failure::failed(format!("{place}: {refused}"));
    match (refused.code(), topic) {
        (Some(ErrorCode::UnknownTopic), Some(topic)) => failure.cure(format!(
            "make it with `ringmq topic create {topic}`; a server with --dev makes topics on first use"
        )),
        (Some(ErrorCode::DiskFull), _) => {
            failure.cure("raise --disk-limit, or let --retain-time or --retain-size remove old segments")
        }
        (Some(ErrorCode::ShardPoisoned), _) => failure.cure("see the server's log, then restart it"),
        _ => failure,
    }
}

/// Where it happened.
pub(crate) fn place(target: &Target, topic: Option<&str>) -> String {
    match topic {
        Some(topic) => format!("topic '{}' on {}", crate::format::harmless(topic.as_bytes()), target.server),
        None => target.server.clone(),
    }
}
