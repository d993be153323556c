//! The suite of the legacy stores, over those of this crate.

use std::process::ExitCode;
use std::sync::Arc;

use ork_state_api::ork::{ObjectStore, StateStore};
use ork_state_conformance::ork::{ObjectStores, StateStores, run};
use ork_state_file::{FileStateStore, InMemoryStateStore, ObjectStoreFiles};

fn main() -> ExitCode {
    let states = [
        StateStores {
            name: "file",
            open: |directory, clock| {
                Box::pin(async {
                    let store = FileStateStore::open(directory).await?.with_clock(clock);
                    Ok(Arc::new(store) as Arc<dyn StateStore>)
                })
            },
            on_disk: true,
        },
        StateStores {
            name: "memory",
            open: |_, clock| {
                Box::pin(async {
                    let store = InMemoryStateStore::new().with_clock(clock);
                    Ok(Arc::new(store) as Arc<dyn StateStore>)
                })
            },
            on_disk: false,
        },
    ];
    let objects = [
        ObjectStores {
            name: "local_objects",
            open: |directory| {
                Box::pin(async {
                    let store = ObjectStoreFiles::directory(directory).await?;
                    Ok(Arc::new(store) as Arc<dyn ObjectStore>)
                })
            },
            on_disk: true,
        },
        ObjectStores {
            name: "memory_objects",
            open: |_| Box::pin(async { Ok(Arc::new(ObjectStoreFiles::memory()) as Arc<dyn ObjectStore>) }),
            on_disk: false,
        },
    ];
    run(&states, &objects)
}
