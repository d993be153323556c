//! A server that goes away without a word: the machine lost its power, or a firewall its memory.

#![allow(clippy::unwrap_used, clippy::panic, clippy::wildcard_imports, reason = "test code")]

use std::time::{Duration, Instant};

use crate::common::proxy::Proxy;
use crate::common::*;
use ork_state_api::*;
use ork_state_conformance::Fixture;
use ork_state_postgres::PostgresOptions;

async fn a_silent_server_costs_no_connection_for_ever() {
    let store = FIXTURE.migrated().await.unwrap();
    let proxy = Proxy::start(&store).await;
    let url = proxy.url(&store, "max_connections=1&connect_timeout=2s&call_timeout=500ms");
    let db = PostgresOptions::new(&url).unwrap().connect().await.unwrap();
    db.list_runs(ListRuns::default()).await.unwrap();

    proxy.silent.send_replace(true);
    let new = || NewWorkflow::new("w".parse().unwrap(), dag("a"));
    // The connection that was just given back may still be tried; then this one waits for it in
    // vain, and is not applied.
    let write = WorkflowStore::create_workflow(&db, new()).await.unwrap_err();
    let read = db.list_runs(ListRuns::default()).await.unwrap_err();
    assert_eq!((read.is_retryable(), read.effect()), (true, Effect::NotApplied), "{read}");
    assert!(write.is_retryable(), "{write}");

    proxy.silent.send_replace(false);
    let back = Instant::now();
    while let Err(error) = db.list_runs(ListRuns::default()).await {
        assert!(error.is_retryable() && back.elapsed() < Duration::from_secs(20), "{error}");
    }
    WorkflowStore::create_workflow(&db, new()).await.unwrap();
}

ork_state_conformance::own_tests!([a_silent_server_costs_no_connection_for_ever]);
