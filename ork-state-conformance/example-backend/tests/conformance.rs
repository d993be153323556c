//! The suite, over this backend: every connection to `example:` is a new, empty store.

use std::sync::Arc;

use ork_state_conformance::UrlFixture;

ork_state_conformance::main!(ork_state_example, Arc::new(UrlFixture::new("example", "example:")));
