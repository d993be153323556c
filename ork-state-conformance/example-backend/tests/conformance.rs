//! The suite, over this backend: every connection to `example:` is a new, empty store.

use std::sync::Arc;

use ork_state_conformance::UrlFixture;

ork_state_conformance::main!(ork_state_example, Arc::new(UrlFixture::new("example", "example:")));

// A case of one's own runs with the suite's.
ork_state_conformance::case! { W1, w1_every_store_is_a_new_one(t) {
    t.workflow(ork_state_conformance::dag("a")?).await?;
    let other = t.fixture().migrated().await?;
    let db = ork_state_api::connect(&other.url()).await?;
    db.migrate().await?;
    assert!(db.list_workflows(ork_state_api::ListWorkflows::default()).await?.items.is_empty());
    Ok(())
}}
