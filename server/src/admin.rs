//! The admin listener: `/livez`, `/readyz`, `/metrics` for operators and their machines.
//!
//! Reads the shards' atomics and nothing else, so that a shard never waits for it. Bounded in connections and in
//! time. It answers from the moment the node starts: recovery is visible, not silent.

use crate::banner::state_name;
use crate::limits::{ADMIN_CONNECTIONS_MAX, ADMIN_TIMEOUT};
use crate::metrics::{self, Metrics};
use crate::node::{ShardState, ShardStatus};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// What the pages are made of.
#[derive(Debug)]
pub struct AdminState {
    /// The node's shards.
    pub shards: Vec<Arc<ShardStatus>>,
    /// The text of `/metrics`.
    pub metrics: Metrics,
    /// Set when the drain begins.
    pub draining: Arc<AtomicBool>,
}

/// Answers on `listener` until the runtime ends.
pub async fn serve(listener: std::net::TcpListener, state: Arc<AdminState>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    axum::serve(BoundedListener { listener, permits }, router(state)).await
}

/// The pages.
pub fn router(state: Arc<AdminState>) -> Router {
    Router::new()
        .route("/", get(|| async { "ringmq admin: /livez  /readyz  /metrics\n" }))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .fallback(|| async { (StatusCode::NOT_FOUND, "not here; try /livez, /readyz or /metrics\n") })
        .with_state(state)
}

async fn readyz(State(state): State<Arc<AdminState>>) -> Response {
    let views = state.shards.iter().map(|shard| ShardView::of(shard)).collect::<Vec<_>>();
    let (ready, body) = readiness(&views, state.draining.load(Ordering::Acquire));
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

async fn metrics_page(State(state): State<Arc<AdminState>>) -> Response {
    match state.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// One shard at one moment.
struct ShardView {
    state: ShardState,
    recovered: u64,
    to_recover: u64,
    detail: String,
}

impl ShardView {
    fn of(shard: &ShardStatus) -> Self {
        let (recovered, to_recover) = shard.recovery_progress();
        Self { state: shard.state(), recovered, to_recover, detail: shard.detail() }
    }
}

/// Ready: nothing is starting, recovering or draining, and at least one shard serves. Refused and poisoned shards
/// are listed, and do not take the healthy ones out of service.
fn readiness(shards: &[ShardView], draining: bool) -> (bool, Value) {
    let is = |wanted| shards.iter().any(|shard| shard.state == wanted);
    let recovering = is(ShardState::Starting) || is(ShardState::Recovering);
    let phase = if draining || is(ShardState::Draining) || is(ShardState::Stopped) {
        "draining"
    } else if recovering {
        "recovering"
    } else if is(ShardState::Ready) {
        "serving"
    } else {
        "failed"
    };
    let line = |(number, shard): (usize, &ShardView)| {
        let mut line = json!({"shard": number, "state": state_name(shard.state)});
        if recovering {
            line["recovered_bytes"] = shard.recovered.into();
            line["recovery_bytes"] = shard.to_recover.into();
        }
        if matches!(shard.state, ShardState::Refused | ShardState::Poisoned) {
            line["detail"] = shard.detail.clone().into();
        }
        line
    };
    let numbers = |wanted| {
        let found = shards.iter().enumerate().filter(|(_, shard)| shard.state == wanted);
        found.map(|(number, _)| number).collect::<Vec<_>>()
    };
    let ready = phase == "serving";
    let mut body = json!({
        "ready": ready,
        "phase": phase,
        "refused": numbers(ShardState::Refused),
        "poisoned": numbers(ShardState::Poisoned),
        "shards": shards.iter().enumerate().map(line).collect::<Vec<_>>(),
    });
    if recovering {
        body["recovery"] = json!({
            "recovered_bytes": shards.iter().map(|shard| shard.recovered).sum::<u64>(),
            "recovery_bytes": shards.iter().map(|shard| shard.to_recover).sum::<u64>(),
        });
    }
    (ready, body)
}

/// Accepts as many connections as there are permits; the rest wait in the backlog.
struct BoundedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let permit = loop {
            match Arc::clone(&self.permits).acquire_owned().await {
                Ok(permit) => break permit,
                Err(_) => std::future::pending().await,
            }
        };
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        let idle = Box::pin(sleep_until(Instant::now() + ADMIN_TIMEOUT));
        (BoundedStream { stream, idle, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is closed when nothing was read or written for [`ADMIN_TIMEOUT`].
struct BoundedStream {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.idle.as_mut().reset(Instant::now() + ADMIN_TIMEOUT);
            return poll;
        }
        match self.idle.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.watch(cx, poll)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(state: ShardState) -> ShardView {
        ShardView { state, recovered: 25, to_recover: 100, detail: "why".to_owned() }
    }

    fn check(states: &[ShardState], draining: bool, ready: bool, phase: &str) -> Value {
        let views = states.iter().copied().map(view).collect::<Vec<_>>();
        let (is_ready, body) = readiness(&views, draining);
        assert_eq!((is_ready, body["phase"].as_str().unwrap()), (ready, phase), "{states:?}");
        body
    }

    #[test]
    fn readiness_follows_the_shards() {
        use ShardState::*;
        check(&[Ready, Ready], false, true, "serving");
        check(&[Ready, Ready], true, false, "draining");
        check(&[Ready, Recovering], false, false, "recovering");
        check(&[Starting], false, false, "recovering");
        check(&[Draining, Stopped], false, false, "draining");
        check(&[Refused, Refused], false, false, "failed");
        let body = check(&[Ready, Refused, Poisoned], false, true, "serving");
        assert_eq!((&body["refused"], &body["poisoned"]), (&json!([1]), &json!([2])));
        assert_eq!(body["shards"][1]["detail"], "why");
    }

    #[test]
    fn recovery_shows_its_progress() {
        let body = check(&[ShardState::Recovering, ShardState::Recovering], false, false, "recovering");
        assert_eq!(body["recovery"], json!({"recovered_bytes": 50, "recovery_bytes": 200}));
    }
}
