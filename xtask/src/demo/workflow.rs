//! The workflow: orders from a CSV file, split by region, summed up, converted and reported.
//!
//! Its tasks are shell commands over files in one directory. Each writes its result under another
//! name and renames it. So a task whose scheduler was killed can run again, even while the
//! processes it had started still run.

use std::path::Path;

use ork_state_api::{Dag, Json, Result, TaskName, TaskSpec};

use super::scheduler::{Command, WAREHOUSE};

pub(crate) const REGIONS: [&str; 4] = ["north", "south", "east", "west"];

/// The task whose log the demo follows.
pub(crate) const FOLLOWED: &str = "validate";

/// Fourteen tasks:
///
/// ```text
///            ┌► split-north ► sum-north ┐
/// validate ──┼► split-south ► sum-south ┼► join ► report ► archive
///            ├► split-east  ► sum-east  │
///            └► split-west  ► sum-west  │
/// rates (fails once) ───────────────────┘           │
///                                                   ▼
///                                          publish (a job elsewhere)
/// ```
pub(crate) fn dag(directory: &Path) -> Result<Dag> {
    let task = |name: &str, after: &[String], run: &str| -> Result<TaskSpec> {
        let after: Result<Vec<TaskName>> = after.iter().map(|name| name.parse()).collect();
        let command = Command { run: run.to_owned(), directory: directory.display().to_string() };
        let spec = TaskSpec::new(name.parse()?, "process".parse()?).after(after?);
        Ok(spec.with_params(Json::from_value(&command)?).with_max_retries(2))
    };
    let none = &[];
    let mut tasks = vec![
        // Slow enough to watch.
        task(
            FOLLOWED,
            none,
            "total=$(($(wc -l < orders.csv) - 1))
             for part in 1 2 3 4; do
                 echo \"checked $((total * part / 4)) of $total orders\"; sleep 0.25
             done
             awk -F, 'NR > 1 && (NF != 6 || $5 <= 0) { bad++ } END { exit bad > 0 }' orders.csv",
        )?,
        // A service that is not available at first.
        task(
            "rates",
            none,
            "sleep 0.2
             if [ ! -e rates.tried ]; then touch rates.tried; echo 'rates service: connection refused' >&2; exit 7; fi
             echo '{\"usd_per_eur\": 1.10}'",
        )?,
    ];
    for region in REGIONS {
        tasks.push(task(
            &format!("split-{region}"),
            &[FOLLOWED.to_owned()],
            &format!(
                "sleep 0.4; awk -F, '$3 == \"{region}\"' orders.csv > {region}.$$ && mv {region}.$$ {region}.csv
                 echo \"{{\\\"orders\\\": $(wc -l < {region}.csv)}}\""
            ),
        )?);
        tasks.push(task(
            &format!("sum-{region}"),
            &[format!("split-{region}")],
            &format!("awk -F, '{{ sum += $5 * $6 }} END {{ printf \"{{\\\"eur\\\": %.2f}}\\n\", sum }}' {region}.csv"),
        )?);
    }
    let sums: Vec<String> = REGIONS.iter().map(|region| format!("sum-{region}")).collect();
    tasks.push(task(
        "join",
        &[&sums[..], &["rates".to_owned()]].concat(),
        // The outputs of its dependencies come in a variable, one `name JSON` per line.
        "echo \"$DEPENDENCIES\" | sed -n 's/^sum-\\([a-z]*\\) .*: \\([0-9.]*\\)}/\\1 \\2/p' | sort > totals.$$
         mv totals.$$ totals.txt; wc -l < totals.txt",
    )?);
    tasks.push(task(
        "report",
        &["join".to_owned()],
        "awk '{ printf \"%-6s %12.2f EUR %12.2f USD\\n\", $1, $2, $2 * 1.10; sum += $2 }
              END { printf \"%-6s %12.2f EUR %12.2f USD\\n\", \"all\", sum, sum * 1.10 }' totals.txt > report.$$
         mv report.$$ report.txt; cat report.txt",
    )?);
    tasks.push(task(
        "archive",
        &["report".to_owned()],
        "tar -czf archive.$$ orders.csv totals.txt report.txt && mv archive.$$ archive.tar.gz && wc -c < archive.tar.gz",
    )?);
    // The job that it starts writes its result to the given file, some time later.
    let mut publish = task(
        "publish",
        &["report".to_owned()],
        "sleep 0.7; wc -l < report.txt > $RESULT.$$; mv $RESULT.$$ $RESULT",
    )?;
    publish.executor_type = WAREHOUSE.parse()?;
    tasks.push(publish);
    Dag::new(tasks)
}
