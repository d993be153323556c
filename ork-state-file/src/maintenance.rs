use async_trait::async_trait;
use ork_state_api::{Maintenance, MigrationReport, Result, Violation};

use crate::database::FileDatabase;

#[async_trait]
impl Maintenance for FileDatabase {
    async fn migrate(&self) -> Result<MigrationReport> {
        self.engine().migrate().await
    }

    async fn verify(&self) -> Result<Vec<Violation>> {
        let mut found = ork_state_api::verify::observe(self).await?;
        let more = self.read_logs(|state, logs| {
            let mut more: Vec<Violation> = state
                .disagreements()
                .into_iter()
                .map(|problem| Violation::new("T2", "indexes", problem))
                .collect();
            for row in state.tasks.values().filter(|row| row.log_length > 0) {
                if let Err(problem) = logs.check(row.task.id, row.log_length) {
                    more.push(Violation::new("L2", format!("log of task {}", row.task.id), problem));
                }
            }
            Ok(more)
        });
        found.extend(more.await?);
        Ok(found)
    }
}
