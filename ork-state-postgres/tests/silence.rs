//! A server that goes away without a word: the machine lost its power, or a firewall its memory.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use ork_state_api::*;
use ork_state_conformance::Fixture;
use ork_state_postgres::PostgresOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// Stands before the server, passes on what comes, and swallows it while it is silent. It never closes a connection.
async fn start_proxy(store: &Store) -> (SocketAddr, watch::Sender<bool>) {
    let server: Arc<PgConnectOptions> = Arc::new(store.url().parse().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (silent, is_silent) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let (from_client, to_client) = client.into_split();
            match server.get_socket() {
                Some(directory) => {
                    let socket = directory.join(format!(".s.PGSQL.{}", server.get_port()));
                    let (from_server, to_server) = UnixStream::connect(socket).await.unwrap().into_split();
                    tokio::spawn(pass(from_client, to_server, is_silent.clone()));
                    tokio::spawn(pass(from_server, to_client, is_silent.clone()));
                }
                None => {
                    let there = TcpStream::connect((server.get_host(), server.get_port())).await.unwrap();
                    let (from_server, to_server) = there.into_split();
                    tokio::spawn(pass(from_client, to_server, is_silent.clone()));
                    tokio::spawn(pass(from_server, to_client, is_silent.clone()));
                }
            }
        }
    });
    (address, silent)
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_silent: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        // What comes into the silence is lost for good, as it is when a machine loses its power.
        if !*is_silent.borrow() && to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn a_silent_server_costs_no_connection_for_ever() {
    let store = FIXTURE.migrated().await.unwrap();
    let (address, silent) = start_proxy(&store).await;
    // The store's own URL, by way of the proxy.
    let url = store.url();
    let (user, rest) = url.split_once('@').unwrap();
    let (_, database) = rest.split_once('/').unwrap();
    let separator = if database.contains('?') { '&' } else { '?' };
    let limits = "max_connections=1&connect_timeout=2s&call_timeout=500ms";
    let url = format!("{user}@{address}/{database}{separator}{limits}");
    let db = PostgresOptions::new(&url).unwrap().connect().await.unwrap();
    db.list_runs(ListRuns::default()).await.unwrap();

    silent.send_replace(true);
    let new = || NewWorkflow::new("w".parse().unwrap(), dag("a"));
    // The connection that was just given back may still be tried; then this one waits for it in vain, and is not applied.
    let write = WorkflowStore::create_workflow(&db, new()).await.unwrap_err();
    let read = db.list_runs(ListRuns::default()).await.unwrap_err();
    assert_eq!((read.is_retryable(), read.outcome()), (true, Outcome::NotApplied), "{read}");
    assert!(write.is_retryable(), "{write}");

    silent.send_replace(false);
    let back = Instant::now();
    while let Err(error) = db.list_runs(ListRuns::default()).await {
        assert!(error.is_retryable() && back.elapsed() < Duration::from_secs(20), "{error}");
    }
    WorkflowStore::create_workflow(&db, new()).await.unwrap();
}

ork_state_conformance::own_tests!(&FIXTURE, [a_silent_server_costs_no_connection_for_ever]);
